"""Readers of files that are not DICOM, and of masks in every format: arrays with their geometry."""
