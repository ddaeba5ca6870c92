"""The manifest of a kit: SHA-256 of every file laid down in it, so that a change is seen before the next start.

It guards against mistakes and against changes by others that leave the manifest alone. It is not signed: who can
write into the kit can also write a new manifest. Its own digest, printed when the kit is made, can be kept elsewhere
and compared by ``fedfms kit verify --manifest-sha256``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedfms.configuration import Sha256, Strict, read_json, validated
from fedfms.errors import (
    KIT_FILE_CHANGED,
    KIT_FILE_MISSING,
    KIT_FILE_UNEXPECTED,
    MANIFEST_UNREADABLE,
    Problem,
)
from fedfms.files import sha256_file, write_json
from fedfms.site.kit import MANIFEST as MANIFEST
from fedfms.site.kit import Kit, Role

#: The folders that FLARE reads settings and code from.
WATCHED = ("startup", "local")
#: Files that the site's admin fills in. FLARE itself writes beside the watched folders only (a server's changed studies
#: too: ``study_registry.json`` in the kit then counts instead of the one in ``local``).
EDITED: dict[Role, tuple[str, ...]] = {"site": ("local/policy.yaml", "local/site.yaml"), "server": (), "admin": ()}


class Manifest(Strict):
    """``manifest.json``.

    Attributes:
        files: Path below the kit, with ``/``, and SHA-256. Which others may change is not the manifest's to say.
    """

    files: dict[str, Sha256]


def _watched(folder: Path) -> Iterator[Path]:
    for name in WATCHED:
        yield from sorted(path for path in (folder / name).rglob("*") if path.is_symlink() or not path.is_dir())


def write_manifest(kit: Kit) -> str:
    """Write the manifest of a kit as it lies now.

    Returns:
        SHA-256 of the manifest.
    """
    edited = EDITED[kit.kind]
    names = {path.relative_to(kit.folder).as_posix(): path for path in _watched(kit.folder)}
    files = {name: sha256_file(path) for name, path in names.items() if name not in edited}
    return _write(kit, Manifest(files=files))


def _write(kit: Kit, manifest: Manifest) -> str:
    path = kit.folder / MANIFEST
    write_json(path, manifest.model_dump(mode="json"))
    path.chmod(0o600)
    return sha256_file(path)


def read_manifest(kit: Kit) -> Manifest:
    """Read a kit's manifest.

    Raises:
        FedfmsError: FMS-K012
    """
    path = kit.folder / MANIFEST
    return validated(Manifest, read_json(path, MANIFEST_UNREADABLE), MANIFEST_UNREADABLE, path)


def replace_entries(kit: Kit, *paths: Path) -> None:
    """Take the digests of these files anew and leave all others, so that no other change is covered up.

    Raises:
        FedfmsError: FMS-K012
    """
    manifest = read_manifest(kit)
    files = {**manifest.files, **{path.relative_to(kit.folder).as_posix(): sha256_file(path) for path in paths}}
    _write(kit, Manifest(files=files))


def verify_manifest(kit: Kit) -> list[Problem]:
    """Compare a kit with its manifest.

    Returns:
        FMS-K013, FMS-K014 and FMS-K015, one problem per file; empty if nothing differs.

    Raises:
        FedfmsError: FMS-K012
    """
    manifest = read_manifest(kit)
    found = {path.relative_to(kit.folder).as_posix(): path for path in _watched(kit.folder)}
    problems = []
    for name, digest in manifest.files.items():
        path = found.get(name)
        if path is None:
            problems.append(Problem(KIT_FILE_MISSING, str(kit.folder / name), "listed in the manifest"))
        elif path.is_symlink():
            problems.append(Problem(KIT_FILE_CHANGED, str(path), "a link stands in its place"))
        elif (actual := sha256_file(path)) != digest:
            problems.append(Problem(KIT_FILE_CHANGED, str(path), f"SHA-256 {actual}, manifest {digest}"))
    known = {*manifest.files, *EDITED[kit.kind]}
    problems += [
        Problem(KIT_FILE_UNEXPECTED, str(path), "not in the manifest")
        for name, path in found.items()
        if name not in known
    ]
    return problems
