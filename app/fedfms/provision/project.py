"""The two files that describe a federation: ``project.yml`` (central) and ``profile.yaml`` (distributed provisioning).

Both are FLARE's own formats (``nvflare provision``, ``nvflare cert``), checked here in full before FLARE sees them:
FLARE stops at the first error, and accepts some errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, Field, StringConstraints

from fedfms.configuration import Strict, in_words, read_yaml, validated
from fedfms.errors import PROJECT_INVALID, PROJECT_UNREADABLE, FedfmsError, Problem

_HOST = r"^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$"
#: A certificate's common name has at most 64 characters (RFC 5280, appendix A); FLARE cuts longer ones.
HostName = Annotated[
    str,
    StringConstraints(pattern=_HOST, max_length=64),
    in_words("a host name of at most 64 letters, digits, '.' and '-'"),
]
_Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"),
    in_words("a name of at most 63 letters, digits, '_' and '-'"),
]
SiteName = _Name
ProjectName = _Name
PersonName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,}$", max_length=64),
    in_words("an e-mail address of at most 64 characters"),
]
OrganisationName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,63}$"), in_words("a name of at most 63 letters, digits and '_'")
]
StudyName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$"),
    in_words("a name of at most 63 lower-case letters, digits, '_' and '-', the last two only within"),
]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
Scheme = Literal["grpc", "http", "tcp"]


class ServerParticipant(Strict):
    """The server's entry in ``project.yml``.

    Attributes:
        name: Host name that the sites connect to.
        type: ``server``.
        org: The organisation that runs it.
        fed_learn_port: TCP port for the sites.
        admin_port: TCP port for administrators; the same as the other one if None.
        host_names: Further names and addresses for which its certificate is valid.
    """

    name: HostName
    type: Literal["server"]
    org: OrganisationName
    fed_learn_port: Port
    admin_port: Port | None = None
    host_names: tuple[str, ...] = ()


class SiteParticipant(Strict):
    """The entry of a site, such as a hospital, in ``project.yml``.

    Attributes:
        name: Name of the site.
        type: ``client``.
        org: The organisation that it belongs to.
    """

    name: SiteName
    type: Literal["client"]
    org: OrganisationName


class PersonParticipant(Strict):
    """The entry of a person in ``project.yml``.

    Attributes:
        name: E-mail address.
        type: ``admin``.
        org: The person's organisation.
        role: The person's role, which decides about rights in FLARE.
    """

    name: PersonName
    type: Literal["admin"]
    org: OrganisationName
    role: Literal["project_admin", "org_admin", "lead", "member"]


Participant = Annotated[
    Union[ServerParticipant, SiteParticipant, PersonParticipant],  # noqa: UP007 - Python 3.10 and Annotated
    Field(discriminator="type"),
]


class BuilderEntry(Strict):
    """A step of FLARE's provisioning: the path of a builder class, and its arguments."""

    path: str
    args: dict[str, Any] = Field(default_factory=dict)


def _not_default(name: str) -> str:
    if name == "default":
        raise ValueError("'default' is FLARE's own study")
    return name


class Study(Strict):
    """The sites and persons that take part in a study.

    Attributes:
        site_orgs: Sites, by their organisation.
        admins: E-mail addresses of the persons.
    """

    site_orgs: dict[OrganisationName, tuple[SiteName, ...]]
    admins: tuple[PersonName, ...] = ()

    @property
    def participants(self) -> set[str]:
        """Names of all sites and people of the study."""
        return {*self.admins, *(site for sites in self.site_orgs.values() for site in sites)}


Studies = dict[Annotated[StudyName, AfterValidator(_not_default)], Study]

CERT_BUILDER = "nvflare.lighter.impl.cert.CertBuilder"
BUILDERS = ("nvflare.lighter.impl.workspace.WorkspaceBuilder", "nvflare.lighter.impl.static_file.StaticFileBuilder")


class ProjectDescription(Strict):
    """Content of ``project.yml``, in FLARE's format; ``provision/README.md`` explains each key."""

    api_version: Literal[4]
    name: ProjectName
    description: str = ""
    participants: tuple[Participant, ...]
    builders: tuple[BuilderEntry, ...]
    studies: Studies = Field(default_factory=dict)

    @property
    def server(self) -> ServerParticipant:
        """The one participant that is the server."""
        return next(item for item in self.participants if isinstance(item, ServerParticipant))

    def participant(self, name: str) -> ServerParticipant | SiteParticipant | PersonParticipant | None:
        """The participant with this name; None if there is none."""
        return next((item for item in self.participants if item.name == name), None)


class ProfileServer(Strict):
    """Host name and ports of the server in ``profile.yaml``."""

    host: HostName
    fed_learn_port: Port
    admin_port: Port | None = None


class ProfileDescription(Strict):
    """``profile.yaml``: what all participants of a distributed federation share."""

    name: ProjectName
    scheme: Scheme
    # FLARE also knows 'clear' and 'tls'; without certificates on both sides nobody knows who sends.
    connection_security: Literal["mtls"]
    server: ProfileServer
    studies: Studies = Field(default_factory=dict)


def load_project(path: Path) -> ProjectDescription:
    """Read and check a ``project.yml``.

    Raises:
        FedfmsError: FMS-K002, or FMS-K003 with everything that is wrong.
    """
    project = validated(ProjectDescription, read_yaml(path, PROJECT_UNREADABLE), PROJECT_INVALID, path)
    problems = [Problem(PROJECT_INVALID, f"{path}: {key}", text) for key, text in _contradictions(project)]
    if problems:
        raise FedfmsError(problems)
    return project


def load_profile(path: Path) -> ProfileDescription:
    """Read and check a ``profile.yaml``.

    Raises:
        FedfmsError: FMS-K002, or FMS-K003 with everything that is wrong.
    """
    return validated(ProfileDescription, read_yaml(path, PROJECT_UNREADABLE), PROJECT_INVALID, path)


def _contradictions(project: ProjectDescription) -> Iterator[tuple[str, str]]:
    counts = Counter(item.name for item in project.participants)
    for name in (name for name, count in counts.items() if count > 1):
        yield "participants", f"the name {name} is given more than once"
    kinds = Counter(item.type for item in project.participants)
    if kinds["server"] != 1:
        yield "participants", f"expected one server, found {kinds['server']}"
    if not kinds["client"]:
        yield "participants", "expected at least one participant of type client"
    roles = {item.role for item in project.participants if isinstance(item, PersonParticipant)}
    for role, purpose in (("project_admin", "could block a site or stop a job"), ("lead", "could submit a job")):
        if role not in roles:
            yield "participants", f"nobody has the role {role}; nobody {purpose}"
    paths = Counter(builder.path for builder in project.builders)
    for path in (*BUILDERS, CERT_BUILDER):
        if paths[path] != 1:
            yield "builders", f"expected {path} once, found {paths[path]}"
    for builder in project.builders:
        security = builder.args.get("connection_security", "mtls")
        if security != "mtls":
            yield "builders", f"connection_security is {security!r}; only mtls is accepted"
    yield from _study_contradictions(project.studies, project)


def _study_contradictions(studies: Mapping[str, Study], project: ProjectDescription) -> Iterator[tuple[str, str]]:
    organisations = {item.org for item in project.participants}
    for name, study in studies.items():
        for organisation, sites in study.site_orgs.items():
            if organisation not in organisations:
                yield f"studies.{name}.site_orgs", f"no participant belongs to {organisation}"
            for site in sites:
                found = project.participant(site)
                if not isinstance(found, SiteParticipant):
                    yield f"studies.{name}.site_orgs", f"{site} is not a participant of type client"
                elif found.org != organisation:
                    yield f"studies.{name}.site_orgs", f"{site} is under {organisation}, but belongs to {found.org}"
        for person in study.admins:
            if not isinstance(project.participant(person), PersonParticipant):
                yield f"studies.{name}.admins", f"{person} is not a participant of type admin"
