"""Distributed provisioning: every participant makes its own key; only requests and certificates are exchanged.

The coordinator runs `make_authority` once. A site runs `request`, sends the zip file, gets back what `approve` made,
and builds its kit with `package`, giving the root certificate's fingerprint, which it received by another way
(telephone). FLARE's ``nvflare cert`` and ``nvflare package`` do the work.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml
from cryptography import x509
from pydantic import TypeAdapter

from fedfms.errors import (
    AUTHORITY_UNUSABLE,
    FINGERPRINT_DIFFERS,
    PROJECT_INVALID,
    PROVISIONING_FAILED,
    REQUEST_DIFFERS,
    STUDIES_MISSING,
    FedfmsError,
    Problem,
    fail,
    reason_of,
)
from fedfms.provision.authority import APPROVALS, Authority, finish_authority, open_authority, refuse_overlap
from fedfms.provision.central import MadeKit, refuse_existing
from fedfms.provision.certificate_request import KINDS, UNREADABLE, Applicant, Request, read_member, read_request
from fedfms.provision.flare_command import flare, private_folder
from fedfms.provision.issued import keep_certificate
from fedfms.provision.overlay import overlay_kit, package_versions
from fedfms.provision.project import (
    ProfileDescription,
    load_profile,
)
from fedfms.site.certificates import (
    describe_certificate,
    fingerprint,
    load_certificate,
    parse_fingerprint,
)
from fedfms.site.kit import Kit, open_kit, restrict

#: Validity of a participant's certificate. FLARE's own default is three years; nothing can be revoked.
VALID_DAYS = 365
#: The coordinator's versions beside what FLARE signed: the doctor compares the site's with them.
_PACKAGES = "packages.json"
#: Who asks, in the folder of a request. FLARE looks for the second name; requests made by version 0.1 have it too.
_PARTICIPANT, _FLARE_PARTICIPANT = "participant.yaml", "site.yaml"


def make_authority(profile_file: Path, ca: Path, valid_days: int = 3650) -> Authority:
    """Make a root certificate and its key.

    Args:
        profile_file: ``profile.yaml``.
        ca: Folder for the authority; must be empty or absent.
        valid_days: Validity of the root certificate.

    Raises:
        FedfmsError: FMS-K002 to FMS-K004 and FMS-K007.
    """
    load_profile(profile_file)
    ca = ca.resolve()
    refuse_existing(ca)
    with private_folder(ca) as work:
        made = work / "ca"
        options = ("--profile", profile_file.resolve(), "--output-dir", made, "--valid-days", valid_days)
        flare(("cert", "init", *options), work, where=profile_file)
        finish_authority(made)
        if ca.exists():
            ca.rmdir()
        shutil.move(made, ca)
    return open_authority(ca)


def request(applicant: Applicant, out: Path, host_names: Sequence[str] = ()) -> Request:
    """Make a key and a request for its certificate. The key stays in ``out``.

    Args:
        applicant: Who asks.
        out: Folder for key and request; must be empty or absent.
        host_names: Further names by which a server is reached.

    Raises:
        FedfmsError: FMS-K003, FMS-K004 and FMS-K007.
    """
    problems = applicant.problems()
    if host_names and applicant.kind != "server":
        problems.append(Problem(PROJECT_INVALID, "host_names", "only a server has them"))
    if problems:
        raise FedfmsError(problems)
    out = out.resolve()
    refuse_existing(out)
    content = {"name": applicant.project, "participants": [applicant.participant(host_names)]}
    with private_folder(out) as work:
        definition = work / "participant.yaml"
        definition.write_text(yaml.safe_dump(content), encoding="utf-8")
        made = work / "request"
        flare(("cert", "request", "--participant", definition, "--out", made), work, where=applicant.name)
        # FLARE's name for it is that of the description of the data in a site's kit.
        (made / _FLARE_PARTICIPANT).rename(made / _PARTICIPANT)
        restrict(made)
        if out.exists():
            out.rmdir()
        shutil.move(made, out)
    return read_request(out / f"{applicant.name}.request.zip")


def applicant_of(kit: Kit) -> Applicant:
    """The participant that a kit belongs to, for the request of its next certificate.

    Raises:
        FedfmsError: FMS-K001 or FMS-K010 when the kit or its certificate cannot be read.
    """
    role = describe_certificate(load_certificate(kit.certificate_file)).role
    kind: str | None = {"site": "site", "server": "server"}.get(kit.kind, role)
    if kind not in KINDS:
        raise fail(PROJECT_INVALID, kit.certificate_file, f"the role {kind!r} cannot be requested")
    return Applicant(kit.project, kit.name, kit.organisation or "", kind)


def further_names(kit: Kit) -> tuple[str, ...]:
    """Names and addresses beside its own for which a server's certificate is valid; empty for other participants.

    Raises:
        FedfmsError: FMS-K010 when the certificate cannot be read.
    """
    if kit.kind != "server":
        return ()
    facts = describe_certificate(load_certificate(kit.certificate_file))
    return tuple(name for name in facts.host_names if name != facts.name)


def approve(
    request_file: Path,
    expected: Applicant,
    profile_file: Path,
    ca: Path,
    out: Path,
    *,
    key: str | None = None,
    host_names: Sequence[str] = (),
    valid_days: int = VALID_DAYS,
) -> Request:
    """Sign a request that asks for exactly what is expected.

    Args:
        request_file: What the participant sent.
        expected: Whom the coordinator means to admit. The request does not decide that: otherwise a hospital could ask
            for a lead's certificate.
        profile_file: ``profile.yaml``.
        ca: The authority.
        out: Zip file to write; must not exist.
        key: Fingerprint of the participant's key, asked for by telephone.
        host_names: Names beside its own for which a server may ask; it must ask for all of them.
        valid_days: Validity of the certificate.

    Returns:
        What was approved.

    Raises:
        FedfmsError: FMS-K002 to FMS-K009 and FMS-K016
    """
    profile, authority = _open(profile_file, ca)
    found = read_request(request_file)
    _require_expected(found, replace(expected, project=profile.name), host_names, key, request_file)
    out = out.resolve()
    refuse_overlap(authority.folder, out)
    refuse_existing(out)
    with authority.locked(), private_folder(out) as work:
        authority.refuse_blocked([expected.name])
        made = work / out.name
        options = ("--ca-dir", authority.folder, "--profile", profile_file.resolve(), "--out", made)
        arguments = ("cert", "approve", request_file.resolve(), *options, "--valid-days", valid_days)
        flare(arguments, work, where=request_file)
        certificate = _require_names(made, expected.name, host_names)
        with zipfile.ZipFile(made, "a") as archive:
            archive.writestr(_PACKAGES, json.dumps(package_versions()))
        for record in (work / ".nvflare" / "cert_approves").glob("*.json"):
            # FLARE's own record of the approval, which would otherwise be in the user's home.
            kept = authority.folder / APPROVALS / record.name
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            shutil.move(record, kept)
            kept.chmod(0o600)
        keep_certificate(authority, certificate)
        shutil.move(made, out)
    return found


def _require_expected(
    found: Request, expected: Applicant, host_names: Sequence[str], key: str | None, where: Path
) -> None:
    asked = {**asdict(found.applicant), "host_names": _listed(found.host_names)}
    wanted = {**asdict(expected), "host_names": _listed(host_names)}
    problems = [
        Problem(REQUEST_DIFFERS, f"{where}: {name}", f"asks for {asked[name]}, expected {wanted[name]}")
        for name in asked
        if asked[name] != wanted[name]
    ]
    if key is not None and parse_fingerprint(key) != found.key:
        detail = f"the request's key is {found.key}, expected {parse_fingerprint(key)}"
        problems.append(Problem(FINGERPRINT_DIFFERS, str(where), detail))
    if problems:
        raise FedfmsError(problems)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(set(names))) or "none"


def _require_names(signed: Path, name: str, host_names: Sequence[str]) -> x509.Certificate:
    """The certificate that FLARE signed, if it is valid for no other name, wherever FLARE may have found one."""
    with zipfile.ZipFile(signed) as archive:
        certificate = x509.load_pem_x509_certificate(read_member(archive, f"{name}.crt"))
    if more := set(describe_certificate(certificate).host_names) - {name, *host_names}:
        raise fail(REQUEST_DIFFERS, signed.name, f"the certificate would also be valid for {_listed(sorted(more))}")
    return certificate


def _open(profile_file: Path, ca: Path) -> tuple[ProfileDescription, Authority]:
    profile, authority = load_profile(profile_file), open_authority(ca)
    if authority.central:
        raise fail(AUTHORITY_UNUSABLE, ca, "it is of central provisioning: use provision, add-site and renew")
    authority.require_project(profile.name, profile_file)
    return profile, authority


def package(
    signed_file: Path, request_folder: Path, root_fingerprint: str, out: Path, profile_file: Path | None = None
) -> MadeKit:
    """Build a kit where its key was made.

    Args:
        signed_file: What the coordinator sent back.
        request_folder: The folder of `request`, with the key.
        root_fingerprint: SHA-256 fingerprint of the root certificate, received by another way than the file.
        out: Folder; the kit becomes ``<out>/<name>``.
        profile_file: For a server, which needs it: ``profile.yaml`` with its first studies.

    Raises:
        FedfmsError: FMS-K002 to FMS-K004, FMS-K007, FMS-K008, and FMS-K022 for a server without ``profile_file``; then
            nothing was made.
    """
    out = out.resolve()
    profile = load_profile(profile_file) if profile_file is not None else None
    with private_folder(out / "kit") as work:
        made, packages = _flare_package(signed_file, request_folder, root_fingerprint, work)
        refuse_existing(out / made.name)
        _require_profile(open_kit(made), profile, profile_file)
        digest = overlay_kit(made, profile.studies if profile is not None else None, packages)
        shutil.move(made, out / made.name)
    return MadeKit(out / made.name, digest)


def _require_profile(kit: Kit, profile: ProfileDescription | None, profile_file: Path | None) -> None:
    """A server without studies would start, and refuse every job of a study."""
    if profile is None:
        if kit.kind == "server":
            detail = "without --profile the server would know no study and refuse every job that is submitted to one"
            raise fail(STUDIES_MISSING, kit.name, detail)
    elif profile.name != kit.project:
        raise fail(PROJECT_INVALID, f"{profile_file}: name", f"is {profile.name}, the certificate's is {kit.project}")


def packaged_certificate(signed_file: Path, request_folder: Path, root_fingerprint: str, work: Path) -> Path:
    """Build a kit in a temporary folder to obtain its certificate files.

    Returns:
        The folder with certificate, key and root certificate.
    """
    return _flare_package(signed_file, request_folder, root_fingerprint, work)[0] / "startup"


def _flare_package(
    signed_file: Path, request_folder: Path, root_fingerprint: str, work: Path
) -> tuple[Path, dict[str, str]]:
    expected = parse_fingerprint(root_fingerprint)
    request_copy = work / "request"
    options = ("--request-dir", request_copy, "--fingerprint", expected, "--workspace", work / "workspace")
    try:
        # FLARE reads no file of another name, and none with a file in it that it does not know.
        packages = _without_packages(signed_file, work / "answer.signed.zip")
        with zipfile.ZipFile(signed_file) as archive:
            root = fingerprint(x509.load_pem_x509_certificate(read_member(archive, "rootCA.pem")))
    except UNREADABLE as error:
        raise fail(PROVISIONING_FAILED, signed_file, reason_of(error)) from error
    if root != expected:
        raise fail(FINGERPRINT_DIFFERS, signed_file, f"the root certificate in it is {root}, expected {expected}")
    _copy_for_flare(request_folder, request_copy)
    answer = flare(("package", work / "answer.signed.zip", *options), work, where=signed_file)
    made = Path(str(answer["output_dir"]))
    open_kit(made)
    return made, packages


def old_participant_file(request_folder: Path) -> Path | None:
    """The file under its old name, of a request that version 0.1 made; None if the folder has the new name."""
    old = request_folder / _FLARE_PARTICIPANT
    return old if old.exists() and not (request_folder / _PARTICIPANT).exists() else None


def _copy_for_flare(request_folder: Path, target: Path) -> None:
    """Copy the files of a request with the names that FLARE knows; raises FMS-K004 if they cannot be read."""
    try:
        target.mkdir(mode=0o700)
        for path in request_folder.iterdir():
            if path.suffix in (".csr", ".json", ".key", ".yaml") and path.name != _PARTICIPANT:
                shutil.copy(path, target, follow_symlinks=False)
        if (request_folder / _PARTICIPANT).exists():
            shutil.copy(request_folder / _PARTICIPANT, target / _FLARE_PARTICIPANT, follow_symlinks=False)
    except OSError as error:
        raise fail(PROVISIONING_FAILED, request_folder, reason_of(error)) from error


def _without_packages(signed_file: Path, target: Path) -> dict[str, str]:
    """Copy FLARE's part of an answer; return the coordinator's package versions, empty if it sent none."""
    with zipfile.ZipFile(signed_file) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            if name != _PACKAGES:
                copy.writestr(name, read_member(archive, name))
        if _PACKAGES not in archive.namelist():
            return {}
        return TypeAdapter(dict[str, str]).validate_json(read_member(archive, _PACKAGES), strict=True)
