"""DICOM: from the files of a series to voxels, segmentations and structure sets (PS3.3, PS3.5, PS3.10)."""
