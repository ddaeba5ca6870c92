"""Descriptions of small federations for the tests."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[2]
SITES = ("hospital-a", "hospital-b", "hospital-c")


# Below the ports that the operating system gives to connections. Each process of the tests has some of its own, and
# none is given twice: a federation listens only long after it was told its port.
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = random.Random().sample(range(20000 + 1000 * _worker, 21000 + 1000 * _worker), 1000)


def free_port() -> int:
    """A TCP port that nobody listens on now and no other test was given."""
    while True:
        port = _ports.pop()
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def project_content(**changes: Any) -> dict[str, Any]:
    """The project's own ``project.yml`` with a server on this machine."""
    content = yaml.safe_load((PROJECT / "provision" / "project.yml").read_text(encoding="utf-8"))
    server = content["participants"][0]
    server["name"], server["fed_learn_port"] = "localhost", free_port()
    return {**content, **changes}


def without(content: dict[str, Any], *names: str) -> dict[str, Any]:
    """The content without some participants, and without them in studies."""
    participants = [item for item in content["participants"] if item["name"] not in names]
    studies = {
        name: {
            "site_orgs": {org: sites for org, sites in study["site_orgs"].items() if not set(sites) & set(names)},
            "admins": [person for person in study["admins"] if person not in names],
        }
        for name, study in content["studies"].items()
    }
    return {**content, "participants": participants, "studies": studies}


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def profile_content(**changes: Any) -> dict[str, Any]:
    """The project's own ``profile.yaml`` with a server on this machine."""
    content = yaml.safe_load((PROJECT / "provision" / "profile.yaml").read_text(encoding="utf-8"))
    content["server"] = {"host": "localhost", "fed_learn_port": free_port()}
    return {**content, **changes}


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and mode of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }
