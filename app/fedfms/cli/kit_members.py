"""``fedfms kit`` for the later days of a federation: who is in it, and who no longer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfms.cli.kit import Authority
from fedfms.cli.kit import kit_app as kit_app
from fedfms.cli.printing import AsJson, print_json

if TYPE_CHECKING:
    from datetime import datetime

    from fedfms.provision.issued import IssuedCertificate
    from fedfms.provision.project import Study

Participant = Annotated[str, typer.Argument(help="The participant.")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]
InAdvance = Annotated[bool, typer.Option("--in-advance", help="Allow a participant that is not known yet.")]
SomeAuthority = Annotated[
    Path | None, typer.Option("--ca", help="The certificate authority, for its list: no certificate for who is on it.")
]
ServerKit = Annotated[
    Path | None,
    typer.Option("--server", help="The server's kit, for its list: the running server follows it within seconds."),
]
AdminKit = Annotated[
    Path | None,
    typer.Option(
        "--admin",
        help="To block a site from another machine than the server's: kit of a person who may operate the server "
        "(project_admin, or org_admin of its organisation). FLARE's 'system disable-client' is run with it.",
    ),
]


@kit_app.command("list")
def kit_list(ca: Authority, as_json: AsJson = False) -> None:
    """List the certificates that an authority has made: who has which until when, and who is blocked.

    Renewed certificates are listed too: none can be revoked. Warns about those that expire within 30 days.
    """
    from datetime import datetime, timezone

    from fedfms.provision.authority import open_authority
    from fedfms.provision.issued import issued_certificates
    from fedfms.site.certificates import RENEWAL_DAYS, describe_certificate

    authority, now = open_authority(ca), datetime.now(timezone.utc)
    certificates = issued_certificates(authority)
    root = describe_certificate(authority.root)
    others = authority.blocked.keys() - {item.name for item in certificates}
    if as_json:
        content = {
            "project": authority.project,
            "way": "central" if authority.central else "distributed",
            "root_fingerprint": root.fingerprint,
            "root_until": root.not_after.isoformat(),
            "root_days_left": round(root.days_left(now), 1),
            "certificates": [item.as_json(now) for item in certificates],
            "blocked_without_certificate": sorted(others),
        }
        print_json(content)
    else:
        _print_certificates(authority.project, certificates, now)
        if others:
            print(f"blocked without a certificate: {', '.join(sorted(others))}")
        print(f"root certificate: until {root.not_after:%Y-%m-%d}, {root.days_left(now):.0f} days")
    if root.days_left(now) < RENEWAL_DAYS:
        print(f"the root certificate {_end(root.days_left(now))}: the project ends with it", file=sys.stderr)
    for item in certificates:
        if not item.renewed and item.block is None and item.days_left(now) < RENEWAL_DAYS:
            print(f"{item.name}: the certificate {_end(item.days_left(now))}: renew it", file=sys.stderr)


def _end(days: float) -> str:
    return "has expired" if days < 0 else f"expires in {days:.0f} days"


def _print_certificates(project: str, certificates: Sequence[IssuedCertificate], now: datetime) -> None:
    table = Table(title=Text(f"certificates of {project}"), box=SIMPLE, pad_edge=False)
    for heading in ("participant", "kind", "organisation", "until", "days", "serial number", ""):
        table.add_column(heading, overflow="fold", justify="right" if heading == "days" else "left")
    for item in certificates:
        days = item.days_left(now)
        notes = ["expired"] if days < 0 else []
        notes += ["renewed by a later one"] if item.renewed else []
        notes += [f"blocked since {item.block.time[:10]}: {item.block.reason}"] if item.block else []
        cells = (item.name, item.kind, item.organisation, f"{item.not_after:%Y-%m-%d}", f"{days:.0f}", item.serial)
        table.add_row(*map(Text, (*cells, "; ".join(notes))))
    Console().print(table)


@kit_app.command("block")
def kit_block(
    name: Participant,
    reason: Reason,
    ca: SomeAuthority = None,
    server: ServerKit = None,
    admin: AdminKit = None,
    in_advance: InAdvance = False,
) -> None:
    """Block a participant: it gets no more certificates (--ca) and is shut out at the server (--server, --admin).

    Its certificate cannot be revoked: both are needed until that expires. The command says what is still to be done.
    """
    from fedfms.provision.authority import open_authority
    from fedfms.provision.blocking import block
    from fedfms.provision.local import admin_command
    from fedfms.provision.studies import open_server

    if ca is None and server is None:
        raise typer.BadParameter("give --ca, --server or both", param_hint="--ca")
    if admin is not None and "@" in name:
        raise typer.BadParameter(
            "FLARE has no command that blocks a person; give --server at the server", param_hint="--admin"
        )
    authority = None if ca is None else open_authority(ca)
    kit = None if server is None else open_server(server)
    block(name, reason, authority=authority, server=kit, in_advance=in_advance)
    if authority is not None:
        print(f"{name}: blocked from new certificates; the one it has stays valid until it expires")
    if kit is not None:
        print(f"{name}: shut out at the server of {kit.folder}, within seconds if it runs")
    if admin is not None:
        admin_command(admin, "system", "disable-client", name, "--force")
        print(f"{name}: disabled at the running server, by FLARE's own command")
    if kit is None and admin is None:
        print("now, on the machine of the server:")
        print(f"  fedfms kit block {name} --server KIT --reason ...")
        if "@" not in name and authority is not None:
            who = "a project_admin" if authority.central else "an org_admin of the server's organisation"
            print(f"or, with the kit of {who}:")
            print(f"  nvflare system disable-client {name} --force --startup-kit KIT")
    if authority is None:
        print("and where the authority is, so that it gets no new certificate:")
        print(f"  fedfms kit block {name} --ca CA --reason ...")


@kit_app.command("bar", hidden=True)
def kit_bar(name: Participant, reason: Reason, ca: SomeAuthority = None, in_advance: InAdvance = False) -> None:
    """Old name of 'kit block'."""
    print("'fedfms kit bar' is now called 'fedfms kit block'", file=sys.stderr)
    kit_block(name, reason, ca=ca, in_advance=in_advance)


@kit_app.command("unblock")
def kit_unblock(name: Participant, ca: SomeAuthority = None, server: ServerKit = None) -> None:
    """Take back 'kit block': at the authority (--ca), at the server (--server), or both."""
    from fedfms.provision.authority import open_authority
    from fedfms.provision.blocking import disabled_by_flare, unblock
    from fedfms.provision.studies import open_server

    if ca is None and server is None:
        raise typer.BadParameter("give --ca, --server or both", param_hint="--ca")
    authority = None if ca is None else open_authority(ca)
    kit = None if server is None else open_server(server)
    unblock(name, authority=authority, server=kit)
    print(f"{name}: not blocked any more")
    if "@" not in name and kit is not None and name in disabled_by_flare(kit):
        print("but it is disabled by FLARE's own command; with the kit of a person who may operate the server:")
        print(f"  nvflare system enable-client {name} --force --startup-kit KIT")


@kit_app.command("study")
def kit_study(
    kit: Annotated[Path, typer.Argument(help="The server's kit, on the machine that runs the server.")],
    study: Annotated[str | None, typer.Argument(help="Name of the study; without it, all are shown.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Register the study.")] = False,
    add_site: Annotated[
        list[str] | None, typer.Option(metavar="ORGANISATION:SITE", help="A site that takes part; repeat for more.")
    ] = None,
    remove_site: Annotated[
        list[str] | None, typer.Option(metavar="SITE", help="A site that no longer takes part; repeat for more.")
    ] = None,
    add_person: Annotated[
        list[str] | None, typer.Option(metavar="EMAIL", help="A person, such as the lead; repeat for more.")
    ] = None,
    remove_person: Annotated[
        list[str] | None, typer.Option(metavar="EMAIL", help="A person who no longer takes part; repeat for more.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the studies of a server, register one, or change who takes part in it. The server need not be stopped.

    A change counts for jobs that are submitted after it; a running job goes on with the sites it has.
    """
    from fedfms.provision.studies import StudyChange, change_study, open_server, read_studies, require_study

    server = open_server(kit)
    pairs = [entry.split(":") for entry in add_site or ()]
    if wrong := [":".join(pair) for pair in pairs if len(pair) != 2 or not all(pair)]:
        raise typer.BadParameter(f"write ORGANISATION:SITE, not {', '.join(wrong)}", param_hint="--add-site")
    sites = tuple((organisation, site) for organisation, site in pairs)
    change = StudyChange(
        new=new,
        add_sites=sites,
        remove_sites=tuple(remove_site or ()),
        add_people=tuple(add_person or ()),
        remove_people=tuple(remove_person or ()),
    )
    if study is None:
        if change != StudyChange():
            raise typer.BadParameter("name the study that is to be changed", param_hint="STUDY")
        found = read_studies(server)
    elif change == StudyChange():
        found = {study: require_study(server, study)}
    else:
        found = {study: change_study(server, study, change)}
    if as_json:
        print_json({name: entry.model_dump(mode="json") for name, entry in found.items()})
        return
    for name, entry in found.items():
        _print_study(name, entry)
    if not found:
        print("no study: only jobs without --study are accepted")


def _print_study(name: str, study: Study) -> None:
    print(f"{name}:")
    for organisation, sites in study.site_orgs.items():
        print(f"  {organisation}: {', '.join(sites) or 'no site; its org_admin may add some'}")
    print(f"  people: {', '.join(study.admins) or 'nobody'}")
