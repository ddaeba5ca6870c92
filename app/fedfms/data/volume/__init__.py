"""The geometry of volumes: voxel grids in the patient, and how they are cut into slices."""
