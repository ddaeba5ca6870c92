"""What the doctor looks at before a kit is started: H."""

from __future__ import annotations

from fedfms.errors.problem import declare

# --- H: health of a kit and its machine (fedfms doctor) ------------------------------------------------------
CERTIFICATE_CHAIN = declare(
    "FMS-H001",
    "the kit's certificate is not signed by the root certificate that the kit was made for",
    "Get the certificate again from the coordinator; do not start with this one.",
)
CERTIFICATE_KEY = declare(
    "FMS-H002",
    "the kit's certificate does not belong to its private key",
    "Put key and certificate of the same request into startup/, or renew the certificate.",
)
CERTIFICATE_VALIDITY = declare(
    "FMS-H003",
    "a certificate of the kit has expired, is not valid yet, or expires soon",
    "Renew the certificate as docs/provisioning.md shows; no new project is needed.",
)
CLOCK = declare(
    "FMS-H004",
    "the machine's clock is wrong, or could not be compared",
    "Set the clock by network time (NTP); certificates and approvals depend on it.",
)
SERVER_NAME = declare(
    "FMS-H005",
    "the server's name does not resolve",
    "Ask for the name in your DNS, or enter the server's address in the machine's hosts file.",
)
SERVER_PORT = declare(
    "FMS-H006",
    "the server's port cannot be reached, or is in use on the server itself",
    "At a site: is the server running, and the firewall open for this one port? At the server: stop what uses it.",
)
SERVER_IDENTITY = declare(
    "FMS-H007",
    "who answers at the server's address is not the server that the kit expects",
    "Do not start. Ask the coordinator; a firewall that opens TLS must make an exception for this connection.",
)
KIT_CHANGED = declare(
    "FMS-H008",
    "the kit is not as it was handed out",
    "Restore the files named from the kit as handed out; if nobody here changed them, treat it as an incident.",
)
KIT_MODES = declare(
    "FMS-H009",
    "files of the kit are open to other users of the machine",
    "Close them with 'chmod -R go= KIT'; if others could read the key, renew the certificate.",
)
POLICY_UNUSABLE = declare(
    "FMS-H010",
    "the site's policy is missing or not valid",
    "Correct local/policy.yaml; docs/security.md explains each key.",
)
POLICY_INACTIVE = declare(
    "FMS-H011",
    "the exit gate does not stop what must not leave",
    "Do not start. Restore local/privacy.json from the kit as handed out and install the package again.",
)
ALLOW_LIST = declare(
    "FMS-H012",
    "local/resources.json is not this package's: jobs may load other classes, or settings are sent to the server",
    "Restore it from the kit as handed out; after an update of the package ask the coordinator for a new kit.",
)
SITE_FILE = declare(
    "FMS-H013",
    "local/site.yaml is missing, not filled in, or not valid",
    "Fill it in with 'fedfms data init', then run 'fedfms data check' on it.",
)
SITE_DATA = declare(
    "FMS-H014",
    "the site's data have errors, or do not offer what the job asks for",
    "Run 'fedfms data check' on local/site.yaml to see each error.",
)
BACKBONE_FILE = declare(
    "FMS-H015",
    "the backbone's weight file is missing or has another digest",
    "Put the published file into the folder named by FEDFMS_BACKBONES.",
)
DISK_SPACE = declare(
    "FMS-H016",
    "there is too little free space on a disk",
    "Free space, or move the kit or compute.cache_dir to a larger disk.",
)
SHARED_MEMORY = declare(
    "FMS-H017",
    "the shared memory /dev/shm is small or missing",
    "Give a container --shm-size=1g; elsewhere mount a tmpfs at /dev/shm.",
)
MEMORY = declare(
    "FMS-H018",
    "there is too little free memory",
    "Close other programs, or set compute.max_batch to 1 and compute.gradient_checkpointing in site.yaml.",
)
GPU = declare(
    "FMS-H019",
    "the site asks for a GPU that PyTorch does not see",
    "Install the GPU's driver and a PyTorch for it, or write compute.device: cpu in site.yaml.",
)
TRAINING_STEP = declare(
    "FMS-H020",
    "a training step could not be run or timed",
    "Correct what the other lines say about backbone, memory and GPU, then run the doctor again.",
)
STALE_PROCESS = declare(
    "FMS-H021",
    "a process or a process file of an earlier start still exists",
    "If the site should not be running, stop it with startup/stop_fl.sh; delete the file if its process is gone.",
)
FOLDERS = declare(
    "FMS-H022",
    "a folder that the kit writes to is not writable",
    "Give the account that runs the kit the right to write there.",
)
VERSIONS = declare(
    "FMS-H023",
    "the installed packages are not those that the kit was made with",
    "Install the versions of the other participants, as the coordinator names them.",
)
JOB = declare(
    "FMS-H024",
    "the job is not valid, or asks for more than the site's policy allows",
    "See 'fedfms job check FOLDER --policy KIT/local/policy.yaml'.",
)
KIT_RECORD = declare(
    "FMS-H025",
    "the kit's record is missing, or contradicts the kit",
    "Unpack the kit again as it was handed out; ask the coordinator if it still differs.",
)
NOTICES = declare(
    "FMS-H026",
    "local/notify.yaml is not valid, or a notice could not be sent",
    "See each reason with 'fedfms notify test'; without local/notify.yaml nobody is notified.",
)
STUDIES = declare(
    "FMS-H027",
    "the server knows no study, or its list of studies cannot be read",
    "Register one at the server: 'fedfms kit study KIT STUDY --new --add-site ORGANISATION:SITE --add-person EMAIL'.",
)
SITE_REFUSED = declare(
    "FMS-H028",
    "the server refuses this site",
    "Ask the coordinator whether the site is blocked; until it is admitted again, stop it with startup/stop_fl.sh.",
)
