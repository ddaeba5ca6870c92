"""Models, training and predictions: M, T, P."""

from __future__ import annotations

from fedfms.errors.problem import declare

# --- M: model and checkpoints ---------------------------------------------------------------------------
BACKBONE_MISSING = declare(
    "FMS-M001",
    "the backbone's weight file was not found",
    "Put the file into the folder named by FEDFMS_BACKBONES.",
)
BACKBONE_DIGEST = declare(
    "FMS-M002",
    "the backbone's weight file has another digest than the job requires",
    "Get the file again from its source, or correct backbone_sha256 in the job.",
)
CHECKPOINT_UNREADABLE = declare(
    "FMS-M003", "the checkpoint is not a readable fedfms checkpoint", "Name a file written by fedfms."
)
CHECKPOINT_MISMATCH = declare(
    "FMS-M004",
    "the checkpoint belongs to another architecture, scope or set of structures",
    "Use the checkpoint with the job it was trained with.",
)
MODEL_INVALID = declare("FMS-M005", "the model configuration is not possible", "Correct the values named in the job.")
BACKBONE_IMPLAUSIBLE = declare(
    "FMS-M006",
    "the backbone's weights look untrained or tampered with",
    "Do not train with this file; find out who handed it out and get the published one.",
)

# --- T: training ----------------------------------------------------------------------------------------
LOSS_NOT_FINITE = declare(
    "FMS-T001",
    "the training loss is not finite",
    "Lower the learning rate or train in fp32.",
)
WORKER_DIED = declare(
    "FMS-T002",
    "the training process ended without a result",
    "See worker.log in the task folder; a common cause is too little memory: lower compute.max_batch.",
)
WORKER_STALLED = declare(
    "FMS-T003",
    "the training process has reported no progress for too long",
    "See worker.log in the task folder.",
)
DEVICE_MISSING = declare(
    "FMS-T004",
    "the device named in site.yaml is not available",
    "Write 'device: auto' under compute in site.yaml, or correct the driver.",
)
OUT_OF_MEMORY = declare(
    "FMS-T005",
    "training needs more memory than there is",
    "Lower compute.max_batch or write 'gradient_checkpointing: true' under compute in site.yaml.",
)
UNEXPECTED = declare(
    "FMS-T999",
    "an unexpected failure",
    "See the site's local log and report it with the log's text.",
)

# --- P: predictions -------------------------------------------------------------------------------------
OUTPUT_EXISTS = declare(
    "FMS-P001",
    "an output exists already, or two inputs would be written to the same one",
    "Name another folder with --out, or add --overwrite.",
)
NOTHING_TO_PREDICT = declare(
    "FMS-P002",
    "the input contains no image",
    "Name a DICOM series or study, a NIfTI, NRRD or MetaImage volume, a picture, or a folder of them.",
)
PROMPT_INVALID = declare(
    "FMS-P003",
    "a box or point does not fit the input",
    "Give boxes and points in pixels of one image; on a volume also --slice.",
)
DICOM_UNWRITABLE = declare(
    "FMS-P004",
    "the result cannot be written as DICOM beside the images it was made from",
    "Export the series again with its study, patient and position tags.",
)
