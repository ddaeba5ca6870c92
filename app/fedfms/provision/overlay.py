"""Puts this project's settings into a kit that FLARE made: what jobs may load, what may leave, who may do what.

FLARE's defaults allow a job to use 88 classes, stream error logs to the server, and let a lead bring code. FLARE
falls back to ``resources.json.default`` and ``authorization.json.default`` where the file itself is missing, so those
get the same content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import fedfms
from fedfms.files import atomic_path, write_json
from fedfms.provision.project import Studies
from fedfms.provision.studies import first_studies_file, studies_file, write_studies
from fedfms.site.allowed_classes import SERVER_CLASSES, SITE_CLASSES
from fedfms.site.certificates import describe_certificate, fingerprint, load_certificate
from fedfms.site.kit import RECORD, Kit, KitRecord, open_kit, restrict
from fedfms.site.manifest import write_manifest

#: What FLARE lays down and this project replaces or does not use.
_REMOVED = ("local/privacy.json.sample", "startup/system_info.ipynb")
#: What a person's role is for, in the person's readme; provision/README.md has the whole table.
_RIGHTS = {
    "project_admin": "stop jobs and the server, change studies, disable a site",
    "org_admin": "stop and start the own sites; of the server's organisation: also the server",
    "lead": "submit jobs to the own studies, stop them, fetch their results: fedfms job check JOB",
    "member": "see the status and the list of jobs",
}
_PACKAGES = ("nvflare", "torch")


def template(name: str) -> str:
    """Content of a file in ``templates``, which is part of the package."""
    return (files("fedfms.provision") / "templates" / name).read_text(encoding="utf-8")


def overlay_kit(folder: Path, studies: Studies | None = None, packages: Mapping[str, str] | None = None) -> str:
    """Turn a kit as FLARE made it into a kit of this project.

    Args:
        folder: The kit.
        studies: For a server: its first studies; if None, those that FLARE has written, or an empty list.
        packages: The coordinator's package versions; those of this machine if None.

    Returns:
        SHA-256 of the kit's manifest.

    Raises:
        FedfmsError: FMS-K001, FMS-K010 or FMS-D011
    """
    kit = open_kit(folder)
    for name in _REMOVED:
        (kit.folder / name).unlink(missing_ok=True)
    if kit.kind != "admin":
        _write_with_default(kit, "resources.json", resources(kit.kind))
        _write_with_default(kit, "authorization.json", json.loads(template(f"{kit.kind}_authorization.json")))
        for name in ("start.sh", "stop_fl.sh"):
            _write(kit, f"startup/{name}", template(name))
        _write(kit, "local/notify.yaml", template("notify.yaml"))
    if kit.kind == "site":
        for name in ("site.yaml", "policy.yaml"):
            _write(kit, f"local/{name}", template(name))
        _write(kit, "local/privacy.json", template("site_privacy.json"))
    if kit.kind == "server" and (studies is not None or studies_file(kit) is None):
        # Without studies too: the doctor takes a missing list for a mistake.
        write_studies(first_studies_file(kit), studies or {})
    _write(kit, "readme.txt", _readme(kit))
    write_json(kit.folder / RECORD, _record(kit, packages).model_dump(mode="json"))
    restrict(kit.folder)
    return write_manifest(kit)


def _readme(kit: Kit) -> str:
    """What the kit is and what to do with it, in place of FLARE's text about its files."""
    role = describe_certificate(load_certificate(kit.certificate_file)).role or ""
    where = f"{kit.server.host}:{kit.server.port}"
    facts = {"name": kit.name, "project": kit.project, "server": where, "role": role, "rights": _RIGHTS.get(role, "")}
    return template(f"readme_{kit.kind}.txt").format(**facts)


def resources(kind: str) -> dict[str, Any]:
    """``local/resources.json`` of a site or the server. It replaces FLARE's default as a whole."""
    content: dict[str, Any] = json.loads(template(f"{kind}_resources.json"))
    return {**content, "class_allow_list": list(SITE_CLASSES if kind == "site" else SERVER_CLASSES)}


def _record(kit: Kit, packages: Mapping[str, str] | None) -> KitRecord:
    return KitRecord(
        project=kit.project,
        kind=kit.kind,
        name=kit.name,
        server=kit.server,
        root_fingerprint=fingerprint(load_certificate(kit.root_file)),
        provisioned=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        packages=package_versions() if packages is None else dict(packages),
    )


def package_versions() -> dict[str, str]:
    """Installed versions of this package and of its most important dependencies, by name."""
    found = {"fedfms": fedfms.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # the coordinator's machine needs no PyTorch
    return found


def _write_with_default(kit: Kit, name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    _write(kit, f"local/{name}", text)
    _write(kit, f"local/{name}.default", text)


def _write(kit: Kit, name: str, text: str) -> None:
    with atomic_path(kit.folder / name) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if name.endswith(".sh"):
            temporary.chmod(0o700)
