"""Finds the ``site.yaml`` that describes a site's data."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedfms.access import is_file
from fedfms.datasets.phantom import write_demo_site
from fedfms.errors import SITE_ABSENT, fail
from fedfms.files import environment_folder
from fedfms.flare.console import say

SITES_VARIABLE = "FEDFMS_SITES"
SITE_FILE = "site.yaml"


def find_site_file(local_folder: Path, site: str, *, simulated: bool, run_folder: Path) -> Path:
    """Find the ``site.yaml`` of this site.

    A real site: ``local/site.yaml`` of its startup kit, else ``$FEDFMS_SITES/<site>.yaml``. The simulator
    copies one ``local`` to all clients, so there the second comes first, and without either it gets generated
    demo data. Where ``FEDFMS_SITES`` is set, a missing file is an error and never demo data.

    Args:
        local_folder: ``local`` of the client's workspace.
        site: The client's name.
        simulated: Whether FLARE's simulator runs.
        run_folder: Where demo data may be written.

    Raises:
        FedfmsError: FMS-D012 when it is in none of the places, FMS-D019 when one of them may not be looked into.
    """
    local = local_folder / SITE_FILE
    folder = environment_folder(SITES_VARIABLE)
    named = folder / f"{site}.yaml" if folder else None
    candidates = [path for path in ((named, local) if simulated else (local, named)) if path is not None]
    for path in candidates:
        if is_file(path):
            return path
    if simulated and named is None:
        return _demo(run_folder / "demo_data", site)
    raise fail(SITE_ABSENT, site, f"looked for {' and '.join(map(str, candidates))}")


def _demo(folder: Path, site: str) -> Path:
    """Generate the demo data once per run; the simulator may start a process for every task."""
    path = folder / SITE_FILE
    if not path.is_file():
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        written = write_demo_site(unfinished, site)
        path = folder / written.relative_to(unfinished)
        unfinished.rename(folder)
        say(f"[{site}] no site.yaml: using SYNTHETIC demo data, generated in {folder}")
    return path
