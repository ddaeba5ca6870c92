"""Brain tumours by institution: FeTS 2022, training data."""

from __future__ import annotations

from fedfms.data.slices.discovery import read_manifest
from fedfms.datasets.recipes.archive import Archive, Files
from fedfms.datasets.recipes.plan import EACH_IMAGE_IS_A_PATIENT, IMAGES, Case, Institution, MaskFolder, Part, Recipe
from fedfms.errors import first_of

PARTITION = Files("**/partitioning_1.csv", "institution of each subject: columns Partition_ID and Subject_ID")
VOLUMES = Files("**/{case}/{case}_t1ce.nii.gz", "T1-weighted volumes with contrast agent")
MASKS = Files("**/{case}/{case}_seg.nii.gz", "label maps")
_COLUMNS = ("Partition_ID", "Subject_ID")
#: Most subjects that one fault names.
_SHOWN = 5


def _plan(archive: Archive) -> list[Case]:
    partition = _partition(archive)
    found = archive.match("the volumes and label maps", archive.find(VOLUMES), archive.find(MASKS))
    subjects = {case for case, _, _ in found}
    if partition and (absent := sorted(partition.keys() - subjects)):
        archive.fault(f"{len(absent)} subjects of {PARTITION.pattern} have no files: {first_of(absent, _SHOWN)}")
    if partition and (unknown := sorted(subjects - partition.keys())):
        archive.fault(f"{len(unknown)} subjects are not in {PARTITION.pattern}: {first_of(unknown, _SHOWN)}")
    return [
        Case(
            Institution(f"institution_{int(partition[case]):02d}", EACH_IMAGE_IS_A_PATIENT),
            case,
            {IMAGES: volume, "masks": mask},
        )
        for case, volume, mask in found
        if case in partition
    ]


def _partition(archive: Archive) -> dict[str, str]:
    """Subject -> number of its institution; a fault where the table is not as expected."""
    path = archive.find(PARTITION).get("")
    if path is None:
        return {}
    columns, rows = read_manifest(path)
    if not set(_COLUMNS) <= set(columns):
        archive.fault(f"the table has the columns {', '.join(columns)}")
        return {}
    partition: dict[str, str] = {}
    for line, row in rows:
        number, subject = (row[column] for column in _COLUMNS)
        if not number.isdecimal() or not subject or subject in partition:
            archive.fault(f"line {line} of the table holds '{number}' and '{subject}': no number, or a subject twice")
        else:
            partition[subject] = number
    return partition


BRAIN = Recipe(
    name="brain",
    format="nifti",
    # 4 is the enhancing tumour; older and newer releases of the same data use 3 for a part of the core.
    masks=(MaskFolder("masks", {"tumour_core": (1, 3, 4)}, ignored=(2,)),),
    parts=(
        Part(
            name="FeTS2022",
            source="https://www.synapse.org/Synapse:syn28546456/wiki/617093 (registration)",
            licence="the challenge's data terms, accepted at registration",
            files=(PARTITION, VOLUMES, MASKS),
            documented=1251,
            plan=_plan,
        ),
    ),
    notes=(
        "Institutions: partitioning_1.csv, the natural partition; partitioning_2.csv divides the large ones further.",
        "Structure tumour_core: necrotic core (1) and enhancing tumour (4). The oedema (2) is not part of it.",
        "Images: the T1-weighted sequence with contrast agent, on which the core's enhancing margin shows. The other"
        " three sequences are not used.",
    ),
)
