"""Where voxels are in space."""
