"""What a site decides for itself: S."""

from __future__ import annotations

from fedfms.errors.problem import declare

# --- S: what the site decides (local/policy.yaml, review, record) ------------------------------------------
POLICY_INVALID = declare(
    "FMS-S001",
    "the site's policy.yaml cannot be read or has wrong, missing or unknown keys",
    "Correct the keys named in local/policy.yaml; docs/security.md explains each one.",
)
POLICY_OBJECTS = declare(
    "FMS-S002",
    "the job asks for more than the site's policy allows",
    "Ask the site to allow it in its local/policy.yaml, or submit a job that asks for less.",
)
POLICY_ABSENT = declare(
    "FMS-S003",
    "this site has no policy.yaml and therefore takes part in no jobs",
    "Write local/policy.yaml in the site's startup kit; docs/security.md shows one.",
)
NOT_APPROVED = declare(
    "FMS-S004",
    "the site has not approved the job",
    "At the site, run 'fedfms review show JOB' and the command that it prints; the site joins in the next round.",
)
REJECTED = declare(
    "FMS-S005",
    "the site has rejected the job",
    "Ask the site for its reason; a changed job is reviewed again.",
)
FEW_TRAINING_CASES = declare(
    "FMS-S006",
    "the site has fewer training cases than its policy requires",
    "Add cases, or let the site lower min_training_cases in its local/policy.yaml.",
)
ALLOWANCE_USED_UP = declare(
    "FMS-S007",
    "the job has used up the hours or replies that the site allows",
    "To allow another run, the site approves the job again, or raises max_hours or max_rounds in local/policy.yaml.",
)
RECORD_UNREADABLE = declare(
    "FMS-S008",
    "the site's record of reviews, or of what has left it, is damaged",
    "Restore the file from a backup; until then nothing leaves the site for the jobs that it is about.",
)
KIT_NOT_FOUND = declare(
    "FMS-S009",
    "the folder is not a site's startup kit",
    "Name the kit with --kit or the environment variable FEDFMS_KIT, or go to its folder.",
)
JOB_UNKNOWN = declare(
    "FMS-S010",
    "the site does not know this job",
    "Name a job folder, or the id of a job that has reached this site: 'fedfms review list' shows those that wait,"
    " egress/ in the kit those that were answered.",
)
DIGEST_DIFFERS = declare(
    "FMS-S011",
    "the digest of the reviewed job is missing, or the job at the site has changed since",
    "Run 'fedfms review show JOB', read the output, and approve with the --digest that it prints.",
)
NOTIFY_INVALID = declare(
    "FMS-S012",
    "the kit's notify.yaml cannot be read, has wrong keys, or names a file that cannot be used",
    "Correct local/notify.yaml as docs/site-admin.md shows; a password is never in it, but in a file or a variable.",
)
NOTICE_FAILED = declare(
    "FMS-S013",
    "a notice could not be sent",
    "Correct local/notify.yaml, or what it names, then run 'fedfms notify test'; no task depends on it.",
)
