"""Job folders and what a run left: J, R."""

from __future__ import annotations

from fedfms.errors.problem import declare

# --- J: the job (jobs/*/app/config/training.yaml) ---------------------------------------------------------
JOB_UNREADABLE = declare(
    "FMS-J001", "the job's training.yaml cannot be read", "Check that the file exists and is valid YAML."
)
JOB_INVALID = declare(
    "FMS-J002",
    "the job's training.yaml has wrong, missing or unknown keys",
    "Correct the keys named; jobs/README.md explains each one.",
)
JOB_NOT_FOR_SITE = declare(
    "FMS-J003",
    "the job asks for something this site does not offer",
    "Compare the job's task and structures with the datasets in site.yaml.",
)
JOB_FOLDER = declare(
    "FMS-J004",
    "the job folder cannot be made or is not a job folder",
    "Name an existing job folder as the source and a folder that does not exist yet as the target.",
)
JOB_REFUSED = declare(
    "FMS-J005",
    "the job's FLARE files contain something that sites do not accept",
    "Start from jobs/fedmsa and change training.yaml only; 'fedfms job check FOLDER' shows all problems.",
)

# --- R: results of a run ---------------------------------------------------------------------------------
RUN_STATE_DIFFERS = declare(
    "FMS-J006",
    "the state that a run was to go on from is of another job, or of another version of this package",
    "Resume the run with the job, the backbone and the package that it began with, or submit the job anew.",
)
RUN_STATE_DAMAGED = declare(
    "FMS-J007",
    "the state that a run was to go on from is damaged",
    "Restore the folder that the message names from a backup, or submit the job anew.",
)
RUN_FOLDER = declare(
    "FMS-R001",
    "the folder does not contain the record of exactly one run",
    "Name the simulator's workspace, or the folder that 'nvflare job download' wrote.",
)
RUN_INCOMPLETE = declare(
    "FMS-R002",
    "the run did not reach its end",
    "Look up the error ids that the message names; without any, the server's log.txt says who or what ended the run.",
)
LEDGER_DAMAGED = declare(
    "FMS-R003",
    "the server's ledger of the run was changed, or lines of it are missing",
    "Take the ledger from the job's result in the server's store ('nvflare job download'), and compare it with the"
    " sites' records: fedfms ledger verify RUN --egress SITE=FILE.",
)
LEDGER_DIFFERS = declare(
    "FMS-R004",
    "the server's ledger and a site's record of what left it do not agree",
    "A reply that left a site and is not in the ledger did not arrive, or the end of the ledger was cut off: see"
    " docs/incident.md.",
)
