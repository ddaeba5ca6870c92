"""What a hospital decides for itself: its policy, its reviews of jobs, its record of what left."""
