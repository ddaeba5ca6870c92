"""Who may do what, asked of FLARE's own authorization for every right that FLARE knows."""

from __future__ import annotations

import json

import pytest
from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.private.fed.utils.app_authz import _RIGHT_BYOC, _RIGHT_FLOWER_PREDEPLOYED
from nvflare.security.security import FLAuthorizer

from fedfms.provision.overlay import template
from tests.provision.conftest import Central

COMMANDS = {value for name, value in vars(AdminCommandNames).items() if name.isupper()}
RIGHTS = {*COMMANDS, _RIGHT_BYOC, _RIGHT_FLOWER_PREDEPLOYED}

LOOK = {
    "check_status", "show_scopes", "show_stats", "reset_errors", "show_errors", "list_jobs", "get_job_meta",
    "report_version",
}  # fmt: skip
RUN = {
    "sys_info", "report_resources", "report_env", "restart", "shutdown", "remove_client", "disable_client",
    "enable_client", "set_timeout", "call", "configure_site_log",
}  # fmt: skip
SHELL = {"cat", "grep", "head", "ls", "pwd", "tail"}
END_JOBS = {"abort", "abort_job", "delete_job", "delete_workspace"}
RESULTS = {"download_job", "download_job_components", "list_job", "get_job_log"}

LEAD = Person("lead@example.org", "coordinator", "lead")
OTHER_LEAD = Person("other@example.org", "coordinator", "lead")
PROJECT_ADMIN = Person("admin@example.org", "coordinator", "project_admin")
COORDINATOR_ADMIN = Person("it@example.org", "coordinator", "org_admin")
OWN_ADMIN = Person("admin@hospital-a.example.org", "hospital_a", "org_admin")
OTHER_ADMIN = Person("admin@hospital-b.example.org", "hospital_b", "org_admin")
MEMBER = Person("member@example.org", "hospital_a", "member")
STRANGER = Person("who@example.org", "hospital_a", "no_such_role")


def allowed(place: str, organisation: str, user: Person) -> set[str]:
    """Every right that FLARE grants; jobs are of LEAD."""
    authorizer = FLAuthorizer(organisation, json.loads(template(f"{place}_authorization.json")))
    found = set()
    for right in RIGHTS:
        granted, error = authorizer.authorize(AuthzContext(right, user, LEAD))
        assert granted or error
        if granted:
            found.add(right)
    return found


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (PROJECT_ADMIN, LOOK),
        (COORDINATOR_ADMIN, LOOK),
        (OTHER_ADMIN, LOOK),
        (MEMBER, LOOK),
        (STRANGER, set()),
        (OTHER_LEAD, LOOK | {"submit_job"}),
        (LEAD, LOOK | {"submit_job", "clone_job", "download_job"} | END_JOBS),
        (OWN_ADMIN, LOOK | RUN),
    ],
    ids=lambda value: str(value) if isinstance(value, Person) else "",
)
def test_rights_at_a_site(user: Person, expected: set[str]) -> None:
    assert allowed("site", "hospital_a", user) == expected


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (PROJECT_ADMIN, LOOK | RUN - {"configure_site_log"} | END_JOBS),
        # The lead's jobs are the coordinator's own organisation's.
        (COORDINATOR_ADMIN, LOOK | RUN | SHELL | END_JOBS),
        (OWN_ADMIN, LOOK),
        (MEMBER, LOOK),
        (STRANGER, set()),
        (OTHER_LEAD, LOOK | {"submit_job"}),
        (LEAD, LOOK | {"submit_job", "clone_job"} | END_JOBS | RESULTS),
    ],
    ids=lambda value: str(value) if isinstance(value, Person) else "",
)
def test_rights_at_the_server(user: Person, expected: set[str]) -> None:
    assert allowed("server", "coordinator", user) == expected


@pytest.mark.parametrize("place", ["site", "server"])
def test_nobody_may_bring_code_or_set_up_a_jobs_logging(place: str) -> None:
    """FLARE asks only the server about configure_job_log, not the site that then does it."""
    for organisation in ("hospital_a", "coordinator"):
        for role in ("project_admin", "org_admin", "lead", "member"):
            rights = allowed(place, organisation, Person(LEAD.name, organisation, role))
            assert not rights & {_RIGHT_BYOC, _RIGHT_FLOWER_PREDEPLOYED, "configure_job_log"}


def test_only_a_lead_may_submit() -> None:
    for role in ("project_admin", "org_admin", "member"):
        assert "submit_job" not in allowed("server", "coordinator", Person(LEAD.name, "coordinator", role))


def test_kits_hold_what_is_tested_here(shared_central: Central) -> None:
    for name, place in (("hospital-a", "site"), ("localhost", "server")):
        for suffix in ("", ".default"):
            text = (shared_central.kits / name / "local" / f"authorization.json{suffix}").read_text()
            assert json.loads(text) == json.loads(template(f"{place}_authorization.json"))


def test_flares_own_default_allows_what_ours_forbids() -> None:
    """If this fails, FLARE has become stricter: look at what the overlay is still needed for."""
    import nvflare.lighter.templates as templates
    from nvflare.lighter.utils import load_yaml

    folder = templates.__path__[0]
    content = load_yaml(f"{folder}/master_template.yml")["default_authz"]
    default = FLAuthorizer("hospital_a", json.loads(content))
    for right in (_RIGHT_BYOC, "cat", "configure_job_log"):
        granted, _ = default.authorize(AuthzContext(right, PROJECT_ADMIN, LEAD))
        assert granted, right
    granted, _ = default.authorize(AuthzContext("configure_job_log", LEAD, LEAD))
    assert granted
