"""Where a site keeps its own files, and where the files of one of its jobs are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfms.access import is_dir
from fedfms.errors import KIT_NOT_FOUND, fail
from fedfms.files import environment_folder

KIT_VARIABLE = "FEDFMS_KIT"


@dataclass(frozen=True)
class JobLocation:
    """Where the files of one job are at one site.

    Attributes:
        kit: The site's kit, which is FLARE's workspace, with the folders ``local``, ``review`` and ``egress``.
        job_id: The job's id.
        application: The deployed application folder.
        state: The job's own folder at the site, ``<kit>/<job id>/fedfms``. The server may have it deleted.
        simulated: Whether the job runs in FLARE's simulator.
    """

    kit: Path
    job_id: str
    application: Path
    state: Path
    simulated: bool


def find_kit(named: Path | None) -> Path:
    """Find the site's kit: the named folder, else ``$FEDFMS_KIT``, else the current folder.

    Args:
        named: The folder that the user named, if any.

    Raises:
        FedfmsError: FMS-S009 when the folder has no subfolder ``local``, FMS-D019 when it may not be entered.
    """
    kit = named or environment_folder(KIT_VARIABLE) or Path.cwd()
    if not is_dir(kit / "local"):
        raise fail(KIT_NOT_FOUND, kit, "it has no folder 'local'")
    return kit.resolve()
