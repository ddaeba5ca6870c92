"""Puts a new certificate into a kit that is in use and changes nothing else in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfms.errors import CERTIFICATE_INVALID, FINGERPRINT_DIFFERS, FedfmsError, Problem
from fedfms.files import atomic_path
from fedfms.provision.distributed import packaged_certificate
from fedfms.provision.flare_command import private_folder
from fedfms.site.certificates import (
    CertificateFacts,
    certificate_problems,
    describe_certificate,
    load_certificate,
)
from fedfms.site.job_location import require_owner
from fedfms.site.kit import Kit, open_kit
from fedfms.site.manifest import replace_entries, verify_manifest


@dataclass(frozen=True)
class Renewed:
    """A kit whose certificate was renewed.

    Attributes:
        kit: The kit.
        before: The certificate that it had.
        after: The certificate that it has now.
    """

    kit: Kit
    before: CertificateFacts
    after: CertificateFacts


def install_certificate(kit_folder: Path, source: Path) -> Renewed:
    """Put a renewed certificate and its key into a kit. Running processes use it from their next start.

    Args:
        kit_folder: The kit.
        source: Folder with ``client.crt`` and ``client.key`` (a server: ``server.*``) and ``rootCA.pem``.

    Raises:
        FedfmsError: FMS-K008 or FMS-K010 if it belongs to another participant or root, or lacks a host name of the
            server; FMS-K011 if it is not valid now or expires no later than the present one; FMS-K012 to FMS-K015 if
            the kit is not intact; FMS-D011 if it belongs to another account. The kit is unchanged then.
    """
    kit = open_kit(kit_folder)
    require_owner(kit.folder, "kit install ...")
    names = (kit.key_file.name, kit.certificate_file.name)
    certificate_file, key_file, root_file = source / names[1], source / names[0], source / kit.root_file.name
    problems = certificate_problems(certificate_file, root_file, key_file)
    before = describe_certificate(load_certificate(kit.certificate_file))
    after = describe_certificate(load_certificate(certificate_file))
    roots = [describe_certificate(load_certificate(path)).fingerprint for path in (kit.root_file, root_file)]
    if roots[0] != roots[1]:
        problems.append(Problem(FINGERPRINT_DIFFERS, str(root_file), f"root {roots[1]}, the kit's is {roots[0]}"))
    for key in ("name", "organisation", "role"):
        old, new = getattr(before, key), getattr(after, key)
        # Central and distributed provisioning differ in what they write as role of a site or server.
        if old != new and not (key == "role" and kit.kind != "admin"):
            problems.append(Problem(CERTIFICATE_INVALID, str(certificate_file), f"{key} is {new}, the kit's is {old}"))
    # Sites that reach the server by a name that its certificate lacks would be shut out.
    if kit.kind == "server" and (lost := [name for name in before.host_names if name not in after.host_names]):
        detail = f"not for {', '.join(lost)}, for which the kit's is valid"
        remedy = "Request it again with 'fedfms kit request --renew KIT', or add the names to project.yml."
        problems.append(Problem(CERTIFICATE_INVALID, str(certificate_file), detail, remedy))
    # After an interrupted renewal key and certificate of the kit differ from the manifest, or a temporary file is left
    # beside them; this call then repairs it, also when the new certificate is in the kit already.
    left = [path for name in names for path in kit.startup.glob(f".{name}.*.tmp")]
    own = {str(path) for path in (kit.key_file, kit.certificate_file, *left)}
    changed = verify_manifest(kit)
    interrupted = any(problem.where in own for problem in changed)
    if after.not_after <= before.not_after and not (interrupted and after.fingerprint == before.fingerprint):
        detail = f"is valid until {after.not_after:%Y-%m-%d}, the kit's until {before.not_after:%Y-%m-%d}"
        problems.append(Problem(CERTIFICATE_INVALID, str(certificate_file), detail))
    problems += [problem for problem in changed if problem.where not in own]
    if problems:
        raise FedfmsError(problems)
    for name in names:
        with atomic_path(kit.startup / name) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_bytes((source / name).read_bytes())
    for path in left:
        path.unlink(missing_ok=True)
    replace_entries(kit, kit.key_file, kit.certificate_file)
    return Renewed(kit, before, after)


def renew_from_approval(kit_folder: Path, signed_file: Path, request_folder: Path, root_fingerprint: str) -> Renewed:
    """Put the certificate of an approved request into a kit (distributed provisioning).

    Args:
        kit_folder: The kit.
        signed_file: What the coordinator sent back.
        request_folder: The folder of the request, with the new key.
        root_fingerprint: SHA-256 fingerprint of the root certificate.

    Raises:
        FedfmsError: as `install_certificate` and ``fedfms.provision.distributed.package``.
    """
    with private_folder(kit_folder.resolve()) as work:
        return install_certificate(
            kit_folder, packaged_certificate(signed_file, request_folder, root_fingerprint, work)
        )
