"""Every failure a user can meet, each with a stable id, a cause and a remedy.

An error has two texts. The *local* text names files, keys and values and stays on the machine where it
arose. The *public* text holds only the id, the title and a count; it is the only one that may reach
FLARE's loggers and replies, because FLARE streams error logs to the server.

`docs/errors.md` lists the catalogue below; a test keeps the two the same. What an error is stands in
`fedfms.problems`; everybody imports from here.
"""

from __future__ import annotations

from fedfms.kit_errors import (
    ADMIN_COMMAND_FAILED,
    ALREADY_THERE,
    AUTHORITY_UNUSABLE,
    CERTIFICATE_EXPIRED,
    CERTIFICATE_INVALID,
    FILE_EXPOSED,
    FINGERPRINT_DIFFERS,
    KIT_FILE_CHANGED,
    KIT_FILE_MISSING,
    KIT_FILE_UNEXPECTED,
    KIT_UNREADABLE,
    MANIFEST_UNREADABLE,
    PARTICIPANT_BARRED,
    PARTICIPANT_UNKNOWN,
    PROJECT_INVALID,
    PROJECT_UNREADABLE,
    PROVISIONING_FAILED,
    REQUEST_DIFFERS,
    START_FAILED,
)
from fedfms.problems import CATALOGUE, ErrorKind, FedfmsError, Problem, fail
from fedfms.problems import declare as _kind
from fedfms.site_errors import (
    ALLOWANCE_USED_UP,
    FEW_TRAINING_CASES,
    JOB_UNKNOWN,
    KIT_NOT_FOUND,
    NOT_APPROVED,
    POLICY_ABSENT,
    POLICY_INVALID,
    POLICY_OBJECTS,
    RECORD_UNREADABLE,
    REJECTED,
)

__all__ = [
    "ADMIN_COMMAND_FAILED",
    "ALLOWANCE_USED_UP",
    "ALREADY_THERE",
    "AUTHORITY_UNUSABLE",
    "CATALOGUE",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_INVALID",
    "FEW_TRAINING_CASES",
    "FILE_EXPOSED",
    "FINGERPRINT_DIFFERS",
    "JOB_UNKNOWN",
    "KIT_FILE_CHANGED",
    "KIT_FILE_MISSING",
    "KIT_FILE_UNEXPECTED",
    "KIT_NOT_FOUND",
    "KIT_UNREADABLE",
    "MANIFEST_UNREADABLE",
    "NOT_APPROVED",
    "PARTICIPANT_BARRED",
    "PARTICIPANT_UNKNOWN",
    "POLICY_ABSENT",
    "POLICY_INVALID",
    "POLICY_OBJECTS",
    "PROJECT_INVALID",
    "PROJECT_UNREADABLE",
    "PROVISIONING_FAILED",
    "RECORD_UNREADABLE",
    "REJECTED",
    "REQUEST_DIFFERS",
    "START_FAILED",
    "ErrorKind",
    "FedfmsError",
    "Problem",
    "fail",
]

# --- J: the job (jobs/*/app/config/training.yaml) ---------------------------------------------------------
JOB_UNREADABLE = _kind(
    "FMS-J001", "the job's training.yaml cannot be read", "Check that the file exists and is valid YAML."
)
JOB_INVALID = _kind(
    "FMS-J002",
    "the job's training.yaml has wrong, missing or unknown keys",
    "Correct the keys named; jobs/README.md explains each one.",
)
JOB_NOT_FOR_SITE = _kind(
    "FMS-J003",
    "the job asks for something this site does not offer",
    "Compare the job's task and structures with the datasets in site.yaml.",
)
JOB_FOLDER = _kind(
    "FMS-J004",
    "the job folder cannot be made or is not a job folder",
    "Name an existing job folder as the source and a folder that does not exist yet as the target.",
)
JOB_REFUSED = _kind(
    "FMS-J005",
    "the job's FLARE files are not such as sites accept",
    "Start from jobs/fedmsa and change training.yaml only; 'fedfms job check FOLDER' shows all problems.",
)

# --- D: data at a site ----------------------------------------------------------------------------------
SITE_UNREADABLE = _kind("FMS-D001", "site.yaml cannot be read", "Check that the file exists and is valid YAML.")
SITE_INVALID = _kind(
    "FMS-D002",
    "site.yaml has wrong, missing or unknown keys",
    "Correct the keys named; docs/site-data.md explains each one.",
)
IMAGE_MISSING = _kind("FMS-D003", "an image or mask file is missing", "Restore the file or take it out of the dataset.")
IMAGE_UNREADABLE = _kind(
    "FMS-D004",
    "an image or mask file is truncated or unreadable",
    "Export the file again from its source, or take it out of the dataset.",
)
GEOMETRY_MISMATCH = _kind(
    "FMS-D005",
    "a mask does not lie on its image, or a file does not say where it lies",
    "Export both on the same grid; resample the mask to the image with nearest neighbour.",
)
LABEL_UNKNOWN = _kind(
    "FMS-D006",
    "a mask holds values outside the label map",
    "Name every value under labels in site.yaml, or list it under ignore_values.",
)
PATIENT_IN_TWO_SPLITS = _kind(
    "FMS-D007",
    "a patient appears in two splits",
    "Give all rows of a patient the same split, or let the split be made by patient.",
)
NO_CASES = _kind(
    "FMS-D008",
    "a needed split holds no case",
    "Check root and patterns in site.yaml, and that there are at least two patients.",
)
CACHE_UNWRITABLE = _kind(
    "FMS-D009",
    "the cache folder cannot be written",
    "Make the folder writable, or name another under compute.cache_dir in site.yaml.",
)
STRUCTURE_MISSING = _kind(
    "FMS-D010",
    "the site lacks a structure that the job trains",
    "Add its masks to site.yaml, or let the job say 'missing_structure: mask'.",
)
FILE_UNWRITABLE = _kind(
    "FMS-D011",
    "a file cannot be written (disk full, or no permission)",
    "Free space or correct the permissions; the previous file is unchanged.",
)
SITE_ABSENT = _kind(
    "FMS-D012",
    "this site has no site.yaml",
    "Write local/site.yaml in the site's startup kit; docs/site-data.md shows how.",
)
SITES_FOLDER = _kind(
    "FMS-D013",
    "the folder does not have the expected layout of one sub-folder per hospital",
    "Give each hospital a folder with images/ and the named mask folders.",
)
CASE_AMBIGUOUS = _kind(
    "FMS-D014",
    "more than one file or series fits where one is expected",
    "Choose one under images.series in site.yaml, or make the pattern for images or masks narrower.",
)
SERIES_IRREGULAR = _kind(
    "FMS-D015",
    "a DICOM series has missing, duplicate or irregularly spaced slices",
    "Export the complete series again, or take it out of the dataset.",
)
SEGMENT_MISSING = _kind(
    "FMS-D016",
    "a DICOM SEG or RTSTRUCT lacks a segment or ROI that site.yaml names",
    "Correct the name under labels in site.yaml, or write 'required: false' under this mask.",
)
ARCHIVE_LAYOUT = _kind(
    "FMS-D017",
    "the folder does not hold the public archives as they are distributed",
    "Unpack the archives as docs/datasets.md shows, or name with --only those that are there.",
)

# --- Q: quality of data, found by 'fedfms data check' -----------------------------------------------------
EMPTY_MASK = _kind(
    "FMS-Q001", "a mask is empty", "Check that the structure is not in the image, and its value under labels."
)
FULL_MASK = _kind("FMS-Q002", "a mask covers a whole slice", "Check that structure and background are not exchanged.")
FLIP_SUSPECTED = _kind(
    "FMS-Q003",
    "a mask or a case may be flipped left to right",
    "Look at the mask over its image with 'fedfms data preview'; export both again with their orientation.",
)
SPACING_OUTLIER = _kind(
    "FMS-Q004",
    "the spacing of a case is far from that of the others",
    "Check that the spacing in the header is right and the series the one that is meant.",
)
INTENSITY_OUTLIER = _kind(
    "FMS-Q005",
    "an image is constant, or its values are far from those of the others",
    "Look at it with a viewer; check modality, rescaling and export.",
)
DUPLICATE_IMAGE = _kind(
    "FMS-Q006",
    "the same image stands in several places",
    "Keep one of them; copies between splits make scores too good.",
)
FEW_CASES = _kind("FMS-Q007", "there are few cases for training or validation", "Add cases; scores on few are unsure.")
BURNED_IN = _kind(
    "FMS-Q008",
    "a DICOM header says that the pixels may show identifying text",
    "Look at the images and mask the text; models can learn it.",
)
RARE_STRUCTURE = _kind(
    "FMS-Q009",
    "a structure is rare, or lacks in a split",
    "Check its labels; add cases or draw another split. For rare slices a job has empty_slices.",
)
PATIENTS_NOT_TOLD = _kind(
    "FMS-Q010",
    "each image counts as a patient",
    "If patients have several images, write another patient rule in site.yaml.",
)
NOT_ANNOTATED = _kind(
    "FMS-Q011",
    "cases have no mask for a structure",
    "Add the masks, or leave it so: such cases do not train the structure.",
)
PARTLY_ANNOTATED = _kind(
    "FMS-Q012",
    "cases have only some of the segments or ROIs listed for a structure",
    "Add the part that lacks, or take the case out.",
)
OTHER_SERIES = _kind(
    "FMS-Q013",
    "the segmentation names another series than the image",
    "Choose the series it was drawn on under images.series, or leave it so when both show the same.",
)

# --- M: model and checkpoints ---------------------------------------------------------------------------
BACKBONE_MISSING = _kind(
    "FMS-M001",
    "the backbone's weight file was not found",
    "Put the file into the folder named by FEDFMS_BACKBONES.",
)
BACKBONE_DIGEST = _kind(
    "FMS-M002",
    "the backbone's weight file has another digest than the job demands",
    "Get the file again from its source, or correct backbone_sha256 in the job.",
)
CHECKPOINT_UNREADABLE = _kind(
    "FMS-M003", "the checkpoint is not a readable fedfms checkpoint", "Name a file written by fedfms."
)
CHECKPOINT_MISMATCH = _kind(
    "FMS-M004",
    "the checkpoint belongs to another architecture, scope or set of structures",
    "Use the checkpoint with the job it was trained with.",
)
MODEL_INVALID = _kind("FMS-M005", "the model configuration is not possible", "Correct the values named in the job.")
BACKBONE_IMPLAUSIBLE = _kind(
    "FMS-M006",
    "the backbone's weights are such as no training gives",
    "Do not train with this file; find out who handed it out and get the published one.",
)

# --- X: the exchange ------------------------------------------------------------------------------------
SCHEMA_MISMATCH = _kind(
    "FMS-X001",
    "a message does not match the exchange schema",
    "Server and sites must run the same job with the same package version.",
)
NOT_FINITE = _kind(
    "FMS-X002",
    "a message holds values that are not finite",
    "Lower the learning rate or train in fp32; nothing was sent.",
)
NORM_EXCEEDED = _kind(
    "FMS-X003",
    "an update is larger than the bound allows",
    "Lower the learning rate or the local work, or agree on another bound.",
)
BACKBONE_DIFFERS = _kind(
    "FMS-X004",
    "server and site hold different frozen backbones",
    "Install the same backbone file on both sides.",
)
JOB_DIFFERS = _kind(
    "FMS-X005",
    "server and site hold different job configurations",
    "Submit the job again; do not edit a deployed job.",
)
STALE_ROUND = _kind("FMS-X006", "a message belongs to another round", "Nothing to do: the next round is not affected.")
DUPLICATE_UPDATE = _kind(
    "FMS-X007", "a site sent a second update for one round", "Nothing to do: the first one counts."
)
INITIAL_STATE = _kind(
    "FMS-X008",
    "the state sent in round 0 is not the one this site derives from backbone and seed",
    "Ask the study lead which package version and backbone the server runs.",
)
GATE_CLOSED = _kind(
    "FMS-X009",
    "the egress gate refused a reply it could not check",
    "See the site's local log for the reason; nothing was sent.",
)
NOT_READY = _kind(
    "FMS-X010",
    "too few sites are ready",
    "Correct what the sites report; each one's problems stand above this message.",
)
NO_UPDATE_ACCEPTED = _kind(
    "FMS-X011",
    "no site's update was accepted in a round",
    "Look at the reasons in the ledger; the last good model is kept.",
)
SCOPE_REFUSED = _kind(
    "FMS-X012",
    "the site's policy does not allow the job's exchange scope",
    "Ask the site to allow the scope, or choose a smaller one in the job.",
)
AGGREGATION_OVERFLOW = _kind(
    "FMS-X013",
    "an update is too large for the aggregator's fixed-point range",
    "Check the number of cases and the update's norm that the site reports.",
)

QUORUM_LOST = _kind(
    "FMS-X014",
    "fewer sites than min_clients can still give an accepted update in a round",
    "Look at the reasons in the ledger; the last good model is kept.",
)
STATE_IMPLAUSIBLE = _kind(
    "FMS-X015",
    "the state that the server sent is such as no training gives",
    "Nothing was computed with it; keep the run folder and ask the study lead what the server did.",
)

# --- P: predictions -------------------------------------------------------------------------------------
OUTPUT_EXISTS = _kind(
    "FMS-P001",
    "an output exists already, or two inputs would be written to the same one",
    "Name another folder with --out, or add --overwrite.",
)
NOTHING_TO_PREDICT = _kind(
    "FMS-P002",
    "the input holds no image",
    "Name a DICOM series or study, a NIfTI, NRRD or MetaImage volume, a picture, or a folder of them.",
)
PROMPT_INVALID = _kind(
    "FMS-P003",
    "a box or point does not fit the input",
    "Give boxes and points in pixels of one image; on a volume also --slice.",
)
DICOM_UNWRITABLE = _kind(
    "FMS-P004",
    "the result cannot be written as DICOM beside the images it was made from",
    "Export the series again with its study, patient and position tags.",
)

# --- R: results of a run ---------------------------------------------------------------------------------
RUN_FOLDER = _kind(
    "FMS-R001",
    "the folder does not hold the record of one run",
    "Name the simulator's workspace, or the folder that 'nvflare job download' wrote.",
)

# --- T: training ----------------------------------------------------------------------------------------
LOSS_NOT_FINITE = _kind(
    "FMS-T001",
    "the training loss is not finite",
    "Lower the learning rate or train in fp32.",
)
WORKER_DIED = _kind(
    "FMS-T002",
    "the training process ended without a result",
    "See worker.log in the task folder; a common cause is too little memory: lower compute.max_batch.",
)
WORKER_STALLED = _kind(
    "FMS-T003",
    "the training process gave no sign of life for too long",
    "See worker.log in the task folder.",
)
DEVICE_MISSING = _kind(
    "FMS-T004",
    "the device named in site.yaml is not available",
    "Write 'device: auto' under compute in site.yaml, or correct the driver.",
)
OUT_OF_MEMORY = _kind(
    "FMS-T005",
    "training needs more memory than there is",
    "Lower compute.max_batch or write 'gradient_checkpointing: true' under compute in site.yaml.",
)
UNEXPECTED = _kind(
    "FMS-T999",
    "an unexpected failure",
    "See the site's local log and report it with the log's text.",
)
