"""Kits and provisioning: K."""

from __future__ import annotations

from fedfms.errors.problem import declare

# --- K: startup kits and provisioning ------------------------------------------------------------------------
KIT_UNREADABLE = declare(
    "FMS-K001",
    "the folder is not a startup kit, or one of the kit's own files cannot be read",
    "Name the folder that contains startup/ and local/; if a file is damaged, unpack the kit again.",
)
PROJECT_UNREADABLE = declare(
    "FMS-K002",
    "the project's or profile's file cannot be read",
    "Check that the file exists and is valid YAML.",
)
PROJECT_INVALID = declare(
    "FMS-K003",
    "the project's description has wrong, missing or unknown keys",
    "Correct the keys named; provision/README.md explains each one.",
)
PROVISIONING_FAILED = declare(
    "FMS-K004",
    "FLARE's own provisioning command refused or failed",
    "See FLARE's reason in the message; nothing was handed out.",
)
AUTHORITY_UNUSABLE = declare(
    "FMS-K005",
    "the folder does not contain the certificate authority of this project",
    "With --ca, name the folder that 'kit provision' or 'kit ca-init' wrote for this project.",
)
FILE_EXPOSED = declare(
    "FMS-K006",
    "files with a private key, or the folders around it, are open to other users of the machine",
    "Give folders mode 0700 and files 0600; if others could read a key, renew the certificate.",
)
ALREADY_THERE = declare(
    "FMS-K007",
    "a kit, request or authority exists already and is never overwritten",
    "Name another folder, or move the old one away after you have made sure that nobody needs it.",
)
FINGERPRINT_DIFFERS = declare(
    "FMS-K008",
    "a fingerprint is not the expected one",
    "Stop here: ask the coordinator by telephone for the fingerprint, and find out where the file really comes from.",
)
REQUEST_DIFFERS = declare(
    "FMS-K009",
    "a certificate request asks for something other than what is to be approved",
    "Do not approve; ask the site what it sent, and compare the key's fingerprint by telephone.",
)
CERTIFICATE_INVALID = declare(
    "FMS-K010",
    "a certificate does not belong to its key, its kit or the project's root",
    "Get the certificate again from the coordinator; nothing was changed.",
)
CERTIFICATE_EXPIRED = declare(
    "FMS-K011",
    "a certificate has expired or is not valid yet",
    "Check the machine's clock; then renew the certificate as docs/provisioning.md shows.",
)
MANIFEST_UNREADABLE = declare(
    "FMS-K012",
    "the kit's manifest is missing or cannot be read",
    "Unpack the kit again as it was handed out and copy your site.yaml and policy.yaml into it.",
)
KIT_FILE_CHANGED = declare(
    "FMS-K013",
    "a file of the kit is not as it was handed out",
    "Restore the file from the kit as handed out; if nobody here changed it, treat it as an incident.",
)
KIT_FILE_MISSING = declare(
    "FMS-K014",
    "a file of the kit is missing",
    "Restore the file from the kit as handed out; FLARE may fall back to a weaker default without it.",
)
KIT_FILE_UNEXPECTED = declare(
    "FMS-K015",
    "the kit's startup or local folder holds a file that does not belong there",
    "Move the file away; FLARE loads further settings and code from these folders.",
)
PARTICIPANT_BLOCKED = declare(
    "FMS-K016",
    "the participant is blocked from the project",
    "When the reason no longer applies: 'fedfms kit unblock NAME', with --ca, --server or both as it was blocked.",
)
PARTICIPANT_UNKNOWN = declare(
    "FMS-K017",
    "the participant is not in the project, or already has or still lacks a certificate",
    "Compare the name with the project's file and with the kits handed out so far.",
)
START_FAILED = declare(
    "FMS-K018",
    "a kit did not start, or its sites did not connect in time",
    "See console.log and log.txt in the kit's folder.",
)
ADMIN_COMMAND_FAILED = declare(
    "FMS-K019",
    "an administrator's command was refused, or did not reach the server",
    "See FLARE's reason in the message; check that the server runs and the kit may give this command.",
)
TRIAL_BLOCKED = declare(
    "FMS-K020",
    "a trial federation cannot start on this machine",
    "Stop what is running, or name another port or folder.",
)
JOB_UNFINISHED = declare(
    "FMS-K021",
    "a job did not finish",
    "See the console lines above, and at each site <job id>/fedfms/errors.log in its kit.",
)
STUDIES_MISSING = declare(
    "FMS-K022",
    "a server's kit is to be packaged without its studies",
    "Give the command again with --profile profile.yaml, the federation's file from the coordinator; nothing was made.",
)
NOT_THE_SERVER = declare(
    "FMS-K023",
    "the kit is not the server's",
    "Name the server's kit; the command is given on the machine that runs the server.",
)
STUDY_CHANGE = declare(
    "FMS-K024",
    "a study cannot be changed as asked",
    "See with 'fedfms kit study KIT' which studies there are and who is in them; nothing was changed.",
)
