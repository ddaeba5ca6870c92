"""Files that are not DICOM, and masks of every format, as arrays with their geometry."""
