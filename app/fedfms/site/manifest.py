"""The manifest of a kit: SHA-256 of every file it was made with, so that a change is detected before the next start.

It protects against mistakes, and against changes by others that do not change the manifest. It is not signed: whoever
can write to the kit can also write a new manifest. Its own digest, printed when the kit is made, can be kept elsewhere
and compared by ``fedfms kit verify --manifest-sha256``.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from fedfms.access import children, refusal, walk
from fedfms.configuration import Sha256, Strict, read_json, validated
from fedfms.errors import (
    KIT_FILE_CHANGED,
    KIT_FILE_MISSING,
    KIT_FILE_UNEXPECTED,
    MANIFEST_UNREADABLE,
    FedfmsError,
    Problem,
)
from fedfms.files import sha256_file, write_json
from fedfms.site.kit import MANIFEST as MANIFEST
from fedfms.site.kit import Kit, Role

#: The folders that FLARE reads settings and code from.
WATCHED = ("startup", "local")
#: Files that the admin of a site or server fills in. FLARE itself writes beside the watched folders only (a server's
#: changed studies too: ``study_registry.json`` in the kit then counts instead of the one in ``local``).
EDITED: dict[Role, tuple[str, ...]] = {
    "site": ("local/notify.yaml", "local/policy.yaml", "local/site.yaml"),
    "server": ("local/notify.yaml",),
    "admin": (),
}


#: Names under which editors keep their copies of a file; FLARE loads none of them.
_COPIES = ("{}~", "{}.~*~", ".{}.sw?", ".{}.kate-swp", "#{}#", ".#{}", "{}.bak", "{}.orig", "{}.old", "{}.save")


class Manifest(Strict):
    """``manifest.json``.

    Attributes:
        files: SHA-256 of each file, by its path below the kit with ``/``. Which files the site may edit is not for the
            manifest to say (`EDITED`).
    """

    files: dict[str, Sha256]


def _watched(folder: Path, refused: list[Problem]) -> Iterator[Path]:
    """Files and links in the watched folders; ``refused`` gets FMS-D019 for each folder that may not be listed."""
    for name in WATCHED:
        yield from (path for path in walk(folder / name, refused) if path.is_symlink() or not path.is_dir())


def write_manifest(kit: Kit) -> str:
    """Write the manifest of a kit as it is now.

    Returns:
        SHA-256 of the manifest.

    Raises:
        FedfmsError: FMS-D019 when a folder of the kit may not be listed.
    """
    edited, refused = EDITED[kit.kind], list[Problem]()
    names = {path.relative_to(kit.folder).as_posix(): path for path in _watched(kit.folder, refused)}
    if refused:
        raise FedfmsError(refused)
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
        FedfmsError: FMS-K012 when the manifest is missing or cannot be read.
    """
    path = kit.folder / MANIFEST
    return validated(Manifest, read_json(path, MANIFEST_UNREADABLE), MANIFEST_UNREADABLE, path)


def replace_entries(kit: Kit, *paths: Path) -> None:
    """Update the digests of these files only, so that no other change is covered up.

    Raises:
        FedfmsError: FMS-K012 when the manifest is missing or cannot be read.
    """
    manifest = read_manifest(kit)
    files = {**manifest.files, **{path.relative_to(kit.folder).as_posix(): sha256_file(path) for path in paths}}
    _write(kit, Manifest(files=files))


def editor_copies(kit: Kit) -> list[Path]:
    """Copies that editors left beside the files that the site's admin fills in: not what was handed out, and harmless.

    Raises:
        FedfmsError: FMS-D019 when their folder may not be listed.
    """
    edited = [kit.folder / name for name in EDITED[kit.kind]]
    return [
        path
        for folder in sorted({file.parent for file in edited})
        for path in children(folder)
        if any(fnmatchcase(path.name, copy.format(file.name)) for file in edited for copy in _COPIES)
        and (path.is_symlink() or path.is_file())
    ]


def verify_manifest(kit: Kit) -> list[Problem]:
    """Compare a kit with its manifest. What `editor_copies` lists does not count.

    Returns:
        Problems FMS-K013, FMS-K014 and FMS-K015, one for each file, and FMS-D019 for what may not be read; empty if
        nothing differs.

    Raises:
        FedfmsError: FMS-K012 when the manifest is missing or cannot be read.
    """
    manifest = read_manifest(kit)
    problems: list[Problem] = []
    found = {path.relative_to(kit.folder).as_posix(): path for path in _watched(kit.folder, problems)}
    hidden = tuple(f"{problem.where}/" for problem in problems)
    for name, digest in manifest.files.items():
        path = found.get(name)
        if path is None and str(kit.folder / name).startswith(hidden):
            continue  # nobody knows: its folder may not be listed
        if path is None:
            problems.append(Problem(KIT_FILE_MISSING, str(kit.folder / name), "listed in the manifest"))
        elif path.is_symlink():
            problems.append(Problem(KIT_FILE_CHANGED, str(path), "was replaced by a link"))
        elif (refused := refusal(path)) is not None:
            problems.append(refused)
        elif (actual := sha256_file(path)) != digest:
            problems.append(Problem(KIT_FILE_CHANGED, str(path), f"SHA-256 {actual}, manifest {digest}"))
    copies = {path.relative_to(kit.folder).as_posix() for path in ([] if hidden else editor_copies(kit))}
    known = {*manifest.files, *EDITED[kit.kind], *copies}
    problems += [
        Problem(KIT_FILE_UNEXPECTED, str(path), "not in the manifest")
        for name, path in found.items()
        if name not in known
    ]
    return problems
