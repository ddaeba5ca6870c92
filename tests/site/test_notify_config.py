"""``local/notify.yaml``: what is accepted, and that everything wrong is said at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfms.errors import FedfmsError
from fedfms.provision.overlay import template
from fedfms.site.notify_config import NotifyConfig, load_notify
from tests.site.receivers import program, write_notify

MAIL = {
    "host": "mail.hospital.example",
    "port": 587,
    "security": "starttls",
    "from": "fedfms@hospital.example",
    "to": ["it@hospital.example"],
}
HOOK = "https://chat.hospital.example/hooks/x"


def refusal(kit: Path) -> str:
    with pytest.raises(FedfmsError) as caught:
        load_notify(kit)
    assert set(caught.value.ids) == {"FMS-S012"}
    return str(caught.value)


def test_without_a_file_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert load_notify(tmp_path) is None


def test_a_link_to_nowhere_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "notify.yaml").symlink_to("nowhere")
    assert "notify.yaml: FileNotFoundError" in refusal(tmp_path)


def test_the_template_names_all_events_and_nobody(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "notify.yaml").write_text(template("notify.yaml"))
    config = load_notify(tmp_path)
    assert config is not None and config.channels == {}
    assert config.events == ("review_waits", "certificate_ends", "run_broke")


def test_the_commented_examples_of_the_template_are_right() -> None:
    text = template("notify.yaml")
    examples = re.sub(r"^# ((command|webhook|smtp):|  .*)", r"\1", text, flags=re.MULTILINE)
    config = NotifyConfig.model_validate(yaml.safe_load(examples))
    assert list(config.channels) == ["command", "webhook", "smtp"]
    shown = set(re.findall(r"^#   ([a-z_]+):", text, re.MULTILINE)) | {"password_variable"}
    assert {"sender" if key == "from" else key for key in shown} == {
        name for channel in config.channels.values() for name in type(channel).model_fields
    }
    assert "password_variable" in text


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    write_notify(
        tmp_path,
        events=["review_waits", "coffee"],
        command={"run": ["tell", "it"], "seconds": 61, "shell": True},
        webhook={"url": "http://chat.hospital.example/x", "seconds": True},
        smtp={**MAIL, "port": "587", "to": ["it@hospital.example", "The IT <it@x>"], "password": "hush-hush"},
        pager=1,
    )
    text = refusal(tmp_path)
    for key, said in {
        "events.1": "coffee",
        "command.run": "write a list that begins with the full path of a program",
        "command.seconds": "less than or equal to 60",
        "command.shell": "unknown key",
        "webhook.url": "write https://; http:// is for 127.0.0.1, ::1 or localhost only",
        "webhook.seconds": "write a number",
        "smtp.port": "integer",
        "smtp.to.1": "write one address without a name",
        "smtp.password": "unknown key",
        "pager": "unknown key",
    }.items():
        (line,) = [line for line in text.splitlines() if f"notify.yaml: {key}: " in line]
        assert said in line
    assert "hush-hush" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"events": []}, "events: name at least one"),
        ({"events": ["run_broke", "run_broke"]}, "named twice: run_broke"),
        ({"command": {"run": []}}, "write a list that begins with the full path"),
        ({"command": {"run": "/bin/true"}}, "command.run"),
        ({"webhook": {"url": "ftp://localhost/x"}}, "write https://"),
        ({"webhook": {"url": "https://name:word@host/x"}}, "before @ is not supported"),
        ({"webhook": {"url": "https:///x"}}, "write a web address such as"),
        ({"webhook": {"url": "https://host:port/"}}, "not a web address"),
        ({"webhook": {"url": "https://host/ x"}}, "write a web address such as"),
        ({"webhook": {"url": "http://localhost.evil.example/"}}, "write https://"),
        ({"smtp": {**MAIL, "to": []}}, "smtp.to: name at least one"),
        ({"smtp": {**MAIL, "from": "a@b\nBcc: c@d"}}, "smtp.from: write one address"),
        ({"smtp": {**MAIL, "host": "mail:25"}}, "without a port"),
        ({"smtp": {**MAIL, "host": "mail 25"}}, "write a host name"),
        ({"smtp": {**MAIL, "security": "none"}}, "security none is for 127.0.0.1, ::1 or localhost only"),
        ({"smtp": {**MAIL, "password_variable": "WORD"}}, "a password needs user"),
        ({"smtp": {**MAIL, "user": "u"}}, "user needs either password_file or password_variable"),
        (
            {"smtp": {**MAIL, "user": "u", "password_file": "/x", "password_variable": "WORD"}},
            "user needs either password_file or password_variable",
        ),
    ],
)
def test_a_wrong_value_says_what_to_write(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_notify(tmp_path, **changes)
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("url", [HOOK, "http://127.0.0.1:80/x", "http://[::1]/x", "http://localhost/x"])
def test_https_and_this_machine_are_accepted(url: str, tmp_path: Path) -> None:
    write_notify(tmp_path, webhook={"url": url})
    assert load_notify(tmp_path) is not None


def test_files_that_cannot_be_used_are_said_at_once(tmp_path: Path) -> None:
    tell = program(tmp_path / "program")
    Path(tell.run[0]).chmod(0o600)
    write_notify(
        tmp_path, command={"run": tell.run}, smtp={**MAIL, "user": "u", "password_file": str(tmp_path / "missing")}
    )
    text = refusal(tmp_path)
    assert "command.run" in text and "is not a file that this account may execute" in text
    assert "smtp.password_file" in text and "FileNotFoundError" in text


@pytest.mark.parametrize(
    ("name", "content", "mode", "said"),
    [
        ("word", "hush\n", 0o600, None),
        ("word", "hush\n", 0o640, "open to other users, mode 0640"),
        ("word", "\nhush\n", 0o600, "the first line of"),
        ("local/word", "hush\n", 0o600, "the manifest allows no other file"),
        ("startup/word", "hush\n", 0o600, "the manifest allows no other file"),
    ],
)
def test_the_file_of_the_password(name: str, content: str, mode: int, said: str | None, tmp_path: Path) -> None:
    write_notify(tmp_path, smtp={**MAIL, "user": "u", "password_file": name})
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    if said is None:
        assert load_notify(tmp_path) is not None
    else:
        text = refusal(tmp_path)
        assert said in text and "hush" not in text
