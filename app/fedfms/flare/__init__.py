"""What FLARE loads by name from a job or from a site's policy; the only part that imports nvflare."""
