"""``fedfms kit``: make startup kits, add and renew participants, and check a kit."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedfms.cli.printing import AsJson, print_json, print_pairs
from fedfms.errors import FedfmsError

if TYPE_CHECKING:
    from fedfms.provision.central import Provisioned
    from fedfms.provision.certificate_request import Applicant, Request
    from fedfms.provision.renewal import Renewed

kit_app = typer.Typer(no_args_is_help=True, help="Make and check the startup kits of a federation.")

ProjectFile = Annotated[Path, typer.Argument(metavar="PROJECT.YML", help="The federation's description.")]
Authority = Annotated[Path, typer.Option("--ca", help="Folder of the certificate authority; never part of a kit.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Participants, as in project.yml.")]
Fingerprint = Annotated[
    str, typer.Option(help="SHA-256 fingerprint of the root certificate, asked for from the coordinator by telephone.")
]
KindOption = Annotated[str, typer.Option("--kind", help="site, server, lead, org_admin or member.")]
Org = Annotated[str, typer.Option(help="The participant's organisation: letters, digits and _.")]
RequestFolder = Annotated[Path, typer.Option("--request", help="Folder of 'fedfms kit request', with the key.")]
SignedFile = Annotated[Path, typer.Argument(metavar="SIGNED.ZIP", help="What the coordinator sent back.")]


@kit_app.command("provision")
def kit_provision(
    project: ProjectFile,
    out: Annotated[Path, typer.Option(help="Folder for the kits, one below it for each participant.")],
    ca: Authority,
) -> None:
    """Make all kits of a project and its certificate authority (central way).

    The authority's folder contains every private key: keep it as its README.txt says.
    """
    from fedfms.provision.central import provision

    _print_made(provision(project, out, ca))


@kit_app.command("add-site")
def kit_add(
    project: ProjectFile,
    names: Names,
    out: Annotated[Path, typer.Option(help="Folder for the new kits.")],
    ca: Authority,
) -> None:
    """Make kits for sites or people that were added to project.yml. No other kit changes; the server keeps running."""
    from fedfms.provision.central import add_participants, steps_for_new_participants
    from fedfms.provision.project import load_project

    _print_made(add_participants(project, names, out, ca))
    if steps := steps_for_new_participants(load_project(project), names):
        print("then, once a site has connected, with a project_admin's kit:")
        print("\n".join(f"  {flares}" for flares, _ in steps))
        print("or, on the machine of the server, with its kit:")
        print("\n".join(f"  {ours}" for _, ours in steps))


@kit_app.command("renew")
def kit_renew(
    project: ProjectFile,
    names: Names,
    out: Annotated[Path, typer.Option(help="Folder for the new certificates, one below it for each participant.")],
    ca: Authority,
) -> None:
    """Make new keys and certificates of the same root (central way). Put them into a kit with 'kit install'."""
    from fedfms.provision.central import renew

    made = renew(project, names, out, ca)
    for kit in made.kits:
        print(f"{kit.folder}: there, 'fedfms kit install KIT {kit.folder.name}', then start the kit again")


@kit_app.command("install")
def kit_install(
    kit: Annotated[Path, typer.Argument(help="The kit.")],
    source: Annotated[Path, typer.Argument(help="Folder with a renewed certificate.")],
) -> None:
    """Put a renewed certificate into a kit and change nothing else. It is used from the kit's next start."""
    from fedfms.provision.renewal import install_certificate

    _print_renewed(install_certificate(kit, source))


@kit_app.command("ca-init")
def kit_ca_init(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE.YAML", help="The federation's profile.yaml.")],
    ca: Authority,
    valid_days: Annotated[int, typer.Option(min=1, max=36500, help="Validity of the root certificate.")] = 3650,
) -> None:
    """Make the certificate authority of a federation whose sites keep their keys (distributed way)."""
    from fedfms.provision.distributed import make_authority

    authority = make_authority(profile, ca, valid_days)
    print(f"authority: {authority.folder} (see README.txt in it)")
    print(f"root certificate: {authority.root_fingerprint}")


@kit_app.command("request")
def kit_request(
    out: Annotated[Path, typer.Option(help="Folder for key and request; the key stays there.")],
    name: Annotated[
        str | None,
        typer.Argument(help="Name of a site, host name of the server, e-mail address of a person."),
    ] = None,
    org: Annotated[str | None, typer.Option(help="The participant's organisation.")] = None,
    project: Annotated[str | None, typer.Option(help="Name of the project.")] = None,
    kind: KindOption = "site",
    host_name: Annotated[
        list[str] | None,
        typer.Option(help="For a server: another name or address by which it is reached; --renew keeps the old."),
    ] = None,
    renew: Annotated[Path | None, typer.Option(help="A kit whose certificate to renew, instead of the names.")] = None,
) -> None:
    """Make a private key and a request for its certificate, to be sent to the coordinator."""
    from fedfms.provision.certificate_request import Applicant
    from fedfms.provision.distributed import applicant_of, further_names, request
    from fedfms.site.kit import open_kit

    names = tuple(host_name or ())
    if renew is not None:
        if name or org or project:
            raise typer.BadParameter("with --renew, all names come from the kit", param_hint="--renew")
        old = open_kit(renew)
        applicant = applicant_of(old)
        # A server keeps the names by which its sites reach it.
        names = tuple(dict.fromkeys((*further_names(old), *names)))
    elif not (name and org and project):
        raise typer.BadParameter("give NAME, --org and --project, or --renew KIT", param_hint="NAME")
    else:
        applicant = Applicant(project, name, org, kind)  # type: ignore[arg-type]
    made = request(applicant, out, names)
    print(f"send to the coordinator: {made.file}")
    _print_request(made)
    print("the private key stays in the folder; the coordinator asks for the key's fingerprint by telephone")


@kit_app.command("approve")
def kit_approve(
    request: Annotated[Path, typer.Argument(metavar="REQUEST.ZIP", help="What the participant sent.")],
    name: Annotated[str, typer.Option(help="Whom you mean to admit.")],
    org: Org,
    ca: Authority,
    profile: Annotated[Path, typer.Option(help="The federation's profile.yaml.")],
    out: Annotated[Path, typer.Option(help="Zip file to write and send back.")],
    kind: KindOption = "site",
    key: Annotated[
        str | None, typer.Option(help="Fingerprint of the participant's key, asked for by telephone.")
    ] = None,
    host_name: Annotated[
        list[str] | None,
        typer.Option(help="For a server: a further name or address that it may ask for; repeat for more."),
    ] = None,
    valid_days: Annotated[int, typer.Option(min=1, max=3650, help="Validity of the certificate.")] = 365,
) -> None:
    """Sign a request, if it asks for exactly what you mean to grant."""
    from fedfms.provision.certificate_request import Applicant
    from fedfms.provision.distributed import approve
    from fedfms.provision.project import load_profile

    expected = Applicant(load_profile(profile).name, name, org, kind)  # type: ignore[arg-type]
    made = approve(request, expected, profile, ca, out, key=key, host_names=host_name or (), valid_days=valid_days)
    _print_request(made)
    if key is None:
        print(
            "the key's fingerprint was NOT compared (--key); the request could have been replaced on its way",
            file=sys.stderr,
        )
    print(f"send back: {out}")
    option = {"site": f"--add-site {org}:{name}", "lead": f"--add-person {name}", "member": f"--add-person {name}"}
    if kind in option and not any(name in study.participants for study in load_profile(profile).studies.values()):
        print(f"{name} is in no study of {profile}; unless the server knows it by now, on the machine of the server:")
        print(f"  fedfms kit study KIT STUDY {option[kind]}")


@kit_app.command("package")
def kit_package(
    signed: SignedFile,
    request: RequestFolder,
    fingerprint: Fingerprint,
    out: Annotated[Path | None, typer.Option(help="Folder in which to create the kit.")] = None,
    into: Annotated[Path | None, typer.Option(help="A kit whose certificate is renewed, instead of a new kit.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="profile.yaml, with the studies; the server's kit needs it.")
    ] = None,
) -> None:
    """Build a kit, where the key was made, from what the coordinator sent back. The fingerprint is always checked."""
    from fedfms.provision.distributed import old_participant_file, package
    from fedfms.provision.renewal import renew_from_approval

    if (out is None) == (into is None):
        raise typer.BadParameter("give one of --out and --into", param_hint="--out")
    if into is not None:
        _print_renewed(renew_from_approval(into, signed, request, fingerprint))
    elif out is not None:
        made = package(signed, request, fingerprint, out, profile)
        print(f"{made.folder}: manifest SHA-256 {made.manifest_sha256}")
        print(f"the key is in the kit now; delete {request}")
    if (old := old_participant_file(request)) is not None:
        print(f"{old}: is called participant.yaml now; the old name is still read", file=sys.stderr)


@kit_app.command("verify")
def kit_verify(
    kit: Annotated[Path, typer.Argument(help="The kit.")],
    manifest_sha256: Annotated[
        str | None,
        typer.Option(help="SHA-256 of the manifest, as printed when the kit was made or renewed and kept elsewhere."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a kit with its manifest; check modes, certificate, key and root. Ends with 1 if anything is wrong."""
    from fedfms.errors import KIT_FILE_CHANGED, Problem
    from fedfms.files import sha256_file
    from fedfms.site.certificates import describe_certificate, load_certificate
    from fedfms.site.kit import exposed_kit, identity_problems, open_kit
    from fedfms.site.manifest import MANIFEST, editor_copies, verify_manifest

    wanted = manifest_sha256.strip().lower() if manifest_sha256 is not None else None
    if wanted is not None and not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise typer.BadParameter("write the 64 digits 0-9, a-f", param_hint="--manifest-sha256")
    found = open_kit(kit)
    try:
        problems = verify_manifest(found)
    except FedfmsError as error:
        problems = list(error.problems)
    problems += [*identity_problems(found), *exposed_kit(found)]
    copies = [str(path) for path in editor_copies(found)]
    manifest = found.folder / MANIFEST
    root = describe_certificate(load_certificate(found.root_file))
    own = describe_certificate(load_certificate(found.certificate_file))
    content: dict[str, Any] = {
        "project": found.project,
        "kind": found.kind,
        "name": found.name,
        "server": f"{found.server.host}:{found.server.port}",
        "certificate_until": own.not_after.isoformat(),
        "certificate_days_left": round(own.days_left(), 1),
        "root_fingerprint": root.fingerprint,
        "root_until": root.not_after.isoformat(),
        "manifest_sha256": sha256_file(manifest) if manifest.is_file() else None,
    }
    if wanted is not None and content["manifest_sha256"] not in (wanted, None):
        detail = f"SHA-256 {content['manifest_sha256']}, expected {wanted}"
        problems.append(Problem(KIT_FILE_CHANGED, str(manifest), detail))
    if as_json:
        print_json({**content, "problems": [str(problem) for problem in problems], "editor_copies": copies})
        raise typer.Exit(1 if problems else 0)
    for path in copies:
        print(f"warning: {path} is an editor's copy; move it out of local/", file=sys.stderr)
    if problems:
        raise FedfmsError(problems)
    print_pairs(content)
    print("the kit is as it was handed out")


def _print_made(made: Provisioned) -> None:
    for kit in made.kits:
        print(f"{kit.folder}: manifest SHA-256 {kit.manifest_sha256}")
    print(f"authority: {made.authority} (see README.txt in it)")
    print(f"root certificate: {made.root_fingerprint}")


def _print_request(made: Request) -> None:
    who: Applicant = made.applicant
    print(f"{who.kind} {who.name} of {who.organisation}, project {who.project}")
    if made.host_names:
        print(f"also for: {', '.join(made.host_names)}")
    print(f"key: {made.key}")


def _print_renewed(renewed: Renewed) -> None:
    from fedfms.files import sha256_file
    from fedfms.site.kit import MANIFEST

    before, after = renewed.before, renewed.after
    print(f"{renewed.kit.folder}: until {before.not_after:%Y-%m-%d} before, until {after.not_after:%Y-%m-%d} now")
    print(f"manifest SHA-256 {sha256_file(renewed.kit.folder / MANIFEST)}")
    print("start the kit again to use it")
