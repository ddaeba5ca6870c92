"""Data at a site and their quality: D, Q."""

from __future__ import annotations

from fedfms.errors.problem import declare

# --- D: data at a site ----------------------------------------------------------------------------------
SITE_UNREADABLE = declare("FMS-D001", "site.yaml cannot be read", "Check that the file exists and is valid YAML.")
SITE_INVALID = declare(
    "FMS-D002",
    "site.yaml has wrong, missing or unknown keys",
    "Correct the keys named; docs/site-data.md explains each one.",
)
IMAGE_MISSING = declare(
    "FMS-D003", "an image or mask file is missing", "Restore the file, or remove it from the dataset."
)
IMAGE_UNREADABLE = declare(
    "FMS-D004",
    "an image or mask file is truncated, unreadable or of a kind that is not read",
    "Export the file again from its source, or remove it from the dataset.",
)
GEOMETRY_MISMATCH = declare(
    "FMS-D005",
    "a mask does not have its image's grid, or a file does not say where its grid is",
    "Export both on the same grid; resample the mask to the image with nearest neighbour.",
)
LABEL_UNKNOWN = declare(
    "FMS-D006",
    "a mask contains values outside the label map",
    "Name every value under labels in site.yaml, or list it under ignore_values.",
)
PATIENT_IN_TWO_SPLITS = declare(
    "FMS-D007",
    "a patient appears in two splits",
    "Give all rows of a patient the same split, or let the split be made by patient.",
)
NO_CASES = declare(
    "FMS-D008",
    "a split that is needed contains no case",
    "Check root and patterns in site.yaml, and that there are at least two patients.",
)
CACHE_UNWRITABLE = declare(
    "FMS-D009",
    "the cache folder cannot be written",
    "Make the folder writable, or name another under compute.cache_dir in site.yaml.",
)
STRUCTURE_MISSING = declare(
    "FMS-D010",
    "the site lacks a structure that the job trains",
    "Add its masks to site.yaml, or let the job say 'missing_structure: mask'.",
)
FILE_UNWRITABLE = declare(
    "FMS-D011",
    "a file cannot be written (disk full, or no permission)",
    "Free space or correct the permissions; the previous file is unchanged.",
)
SITE_ABSENT = declare(
    "FMS-D012",
    "this site has no site.yaml",
    "Write local/site.yaml in the site's startup kit; docs/site-data.md shows how.",
)
SITES_FOLDER = declare(
    "FMS-D013",
    "the folder does not have the expected layout of one sub-folder per hospital",
    "Give each hospital a folder with images/ and the named mask folders.",
)
CASE_AMBIGUOUS = declare(
    "FMS-D014",
    "more than one file, series, volume or position is there where one is expected",
    "Choose one under images.series in site.yaml, or make the pattern for images or masks narrower.",
)
SERIES_IRREGULAR = declare(
    "FMS-D015",
    "a DICOM series has missing, duplicate or irregularly spaced slices",
    "Export the complete series again, or remove it from the dataset.",
)
SEGMENT_MISSING = declare(
    "FMS-D016",
    "a DICOM SEG or RTSTRUCT lacks a segment or ROI that site.yaml names",
    "Correct the name under labels in site.yaml, or write 'required: false' under this mask.",
)
ARCHIVE_LAYOUT = declare(
    "FMS-D017",
    "the folder does not contain the public archives as they are distributed",
    "Unpack the archives as docs/datasets.md shows, or name with --only those that are there.",
)
PALETTES_DIFFER = declare(
    "FMS-D018",
    "the palettes of masks differ, so the same value has several meanings",
    "Save all masks of a folder with one palette, or as grey values without one.",
)
FILE_REFUSED = declare(
    "FMS-D019",
    "a file or folder may not be read by the account that runs fedfms",
    "Ask the owner or the administrator to let this account read it (chown, chmod or 'setfacl -m u:ACCOUNT:rX').",
)

# --- Q: quality of data, found by 'fedfms data check' -----------------------------------------------------
EMPTY_MASK = declare(
    "FMS-Q001", "a mask is empty", "Check that the structure is not in the image, and its value under labels."
)
FULL_MASK = declare("FMS-Q002", "a mask covers a whole slice", "Check that structure and background are not swapped.")
FLIP_SUSPECTED = declare(
    "FMS-Q003",
    "a mask or a case may be flipped left to right",
    "Look at the mask over its image with 'fedfms data preview'; export both again with their orientation.",
)
SPACING_OUTLIER = declare(
    "FMS-Q004",
    "the spacing of a case is far from that of the others",
    "Check that the spacing in the header is right and that this is the intended series.",
)
INTENSITY_OUTLIER = declare(
    "FMS-Q005",
    "an image is constant, or its values are far from those of the others",
    "Look at it with a viewer; check modality, rescaling and export.",
)
DUPLICATE_IMAGE = declare(
    "FMS-Q006",
    "the same image occurs in several places",
    "Keep one of them; copies between splits make scores too good.",
)
FEW_CASES = declare(
    "FMS-Q007", "there are few cases for training or validation", "Add cases; scores on few cases are uncertain."
)
BURNED_IN = declare(
    "FMS-Q008",
    "a DICOM header says that the pixels may show identifying text",
    "Look at the images and mask the text; models can learn it.",
)
RARE_STRUCTURE = declare(
    "FMS-Q009",
    "a structure is rare, or is missing from a split",
    "Check its labels; add cases or draw another split. For rare slices a job has empty_slices.",
)
PATIENTS_NOT_TOLD = declare(
    "FMS-Q010",
    "each image counts as a patient",
    "If patients have several images, write another patient rule in site.yaml.",
)
NOT_ANNOTATED = declare(
    "FMS-Q011",
    "cases have no mask for a structure",
    "Add the masks, or leave it as it is: such cases do not train the structure.",
)
PARTLY_ANNOTATED = declare(
    "FMS-Q012",
    "cases have only some of the segments or ROIs listed for a structure",
    "Add the missing part, or remove the case.",
)
OTHER_SERIES = declare(
    "FMS-Q013",
    "the segmentation names another series than the image",
    "Choose the series it was drawn on under images.series, or leave it as it is when both show the same.",
)
INNER_CONTOURS = declare(
    "FMS-Q014",
    "contours of an RTSTRUCT that are within another one are read as holes",
    "Look at some with 'fedfms data preview'. Where the inner one is no hole, delete it in the planning system.",
)
