"""Where a site keeps its own files, and where the files of one of its jobs are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedfms.access import account, is_dir, login, whose
from fedfms.errors import FILE_UNWRITABLE, KIT_NOT_FOUND, fail
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


def require_owner(kit: Path, command: str) -> None:
    """Refuse to write into a kit as another account than the kit's: the site could not read what is written then.

    Args:
        kit: The site's kit.
        command: What to run as the owner instead, for the remedy.

    Raises:
        FedfmsError: FMS-D011 when the kit belongs to another account, whatever that one may do here.
    """
    owner = kit.stat().st_uid
    if owner != os.geteuid():
        detail = f"nothing was written: what {account()} writes, the kit's owner could not read; {whose(kit)}"
        remedy = f"""Run it as the owner: sudo -u '{login(owner)}' "$(command -v fedfms)" {command}"""
        raise fail(FILE_UNWRITABLE, kit, detail, remedy)


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
