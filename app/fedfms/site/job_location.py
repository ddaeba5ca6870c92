"""Where a site's own files are, and where one of its jobs keeps its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfms.errors import KIT_NOT_FOUND, fail
from fedfms.files import environment_folder

KIT_VARIABLE = "FEDFMS_KIT"


@dataclass(frozen=True)
class JobLocation:
    """One job at one site.

    Attributes:
        kit: The site's kit, which is FLARE's workspace: ``local``, ``review`` and ``egress`` lie there.
        job_id: The job's id.
        application: The deployed application folder.
        state: The job's own folder at the site, ``<kit>/<job id>/fedfms``.
        simulated: Whether FLARE's simulator runs.
    """

    kit: Path
    job_id: str
    application: Path
    state: Path
    simulated: bool


def find_kit(named: Path | None) -> Path:
    """The site's kit: the folder named, else ``$FEDFMS_KIT``, else the current folder.

    Raises:
        FedfmsError: FMS-S009 when it has no folder ``local``.
    """
    kit = named or environment_folder(KIT_VARIABLE) or Path.cwd()
    if not (kit / "local").is_dir():
        raise fail(KIT_NOT_FOUND, kit, "it has no folder 'local'")
    return kit.resolve()
