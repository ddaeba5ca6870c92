"""Tell the people of a kit what needs them (``local/notify.yaml``), each thing once.

A task never waits for a notice and never fails because of one: `tell` starts a process of its own and returns. That
process sends what each channel has not been told yet, and remembers it in ``notices/memory.json`` in the kit. A notice
that could not be sent is tried again when the event is met again; the failure is written to ``notices/failures.log``
once, until the channel works or fails in another way.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from http.client import HTTPException
from math import floor
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from fedfms.configuration import Sha256, Strict, read_json, validated
from fedfms.errors import NOTICE_FAILED, FedfmsError, Problem, reason_of
from fedfms.files import sha256_json, write_json
from fedfms.site.application import read_application
from fedfms.site.certificates import RENEWAL_DAYS, describe_certificate, load_certificate
from fedfms.site.job_location import JobLocation
from fedfms.site.kit import NOTICES_FOLDER, STARTUP_FILES, Kit, open_kit
from fedfms.site.notify_channels import Notice, send
from fedfms.site.notify_config import (
    MOST_SECONDS,
    NOTIFY_FILE,
    Channel,
    ChannelName,
    NotifyConfig,
    has_notify,
    load_notify,
)
from fedfms.site.records import locked, make_closed, utc_now
from fedfms.site.review import review_status

MEMORY_FILE = Path(NOTICES_FOLDER) / "memory.json"
FAILURES_FILE = Path(NOTICES_FOLDER) / "failures.log"

#: A certificate's end is told when so many days are left, and when it has expired.
CERTIFICATE_DAYS = (RENEWAL_DAYS, 7, 1, 0)
#: A channel that worked when it was tried is tried again by the doctor after so many days.
TRIAL_DAYS = 30
# The process that sends ends after this time: three channels, and others that send before it.
_PROCESS_SECONDS = round(10 * MOST_SECONDS)
_FORGET_DAYS = 400


class _Trial(Strict):
    """When a channel worked, with which settings."""

    time: AwareDatetime
    sha256: Sha256


class _Memory(Strict):
    """``notices/memory.json``.

    Attributes:
        told: When each channel was told each thing.
        failing: How the last attempt of a channel failed; absent when it did not.
        tried: The last trial that worked, by channel.
    """

    told: dict[str, dict[ChannelName, AwareDatetime]] = Field(default_factory=dict)
    failing: dict[ChannelName, str] = Field(default_factory=dict)
    tried: dict[ChannelName, _Trial] = Field(default_factory=dict)


def tell_review_waits(location: JobLocation, site: str) -> None:
    """Tell, in the background, that a job waits for a decision; again when an approval has expired. Never raises.

    Args:
        location: The job at the site.
        site: The site's name.
    """
    with _never_raises(location.kit):
        if not has_notify(location.kit):
            return
        digest, now = read_application(location.application).review_sha256, utc_now()
        _, last = review_status(location.kit, digest, now)
        notice = Notice(event="review_waits", site=site, time=now, job_id=location.job_id)
        since = last.time.isoformat() if last is not None else "first"
        _tell(location.kit, f"review_waits {site} {location.job_id} {since}", notice)


def tell_run_broke(kit: Path, site: str, job_id: str, errors: Iterable[str]) -> None:
    """Tell, in the background, that a job failed here; once for each set of errors. Never raises.

    Args:
        kit: The kit's folder.
        site: Name of the site or server, used where there is no kit.
        job_id: The job.
        errors: Ids of the errors.
    """
    with _never_raises(kit):
        if not has_notify(kit):
            return
        ids = tuple(sorted(set(errors)))
        notice = Notice(event="run_broke", site=_known_as(kit, site), time=utc_now(), job_id=job_id, errors=ids)
        _tell(kit, f"run_broke {site} {job_id} {' '.join(ids)}", notice)


def tell_certificates(kit: Path) -> None:
    """Tell, in the background, that a certificate of a kit ends soon, if so. Never raises.

    Args:
        kit: The kit's folder; one without ``startup``, as the simulator's, has no certificate.
    """
    with _never_raises(kit):
        if _is_kit(kit) and has_notify(kit):
            for key, notice in certificate_notices(open_kit(kit)):
                _tell(kit, key, notice)


def _known_as(kit: Path, site: str) -> str:
    """The kit's name: FLARE calls a server's job by the project, which tells people nothing."""
    if _is_kit(kit):
        with suppress(FedfmsError):
            return open_kit(kit).name
    return site


def _is_kit(kit: Path) -> bool:
    return any((kit / "startup" / name).is_file() for name in STARTUP_FILES.values())


def certificate_notices(kit: Kit, now: datetime | None = None) -> list[tuple[str, Notice]]:
    """Notices about those certificates of a kit that end within 30 days, each with the key that `deliver` remembers.

    Args:
        kit: The kit.
        now: Time to judge for; the present if None.

    Raises:
        FedfmsError: FMS-K010 when a certificate cannot be read.
    """
    now = now or utc_now()
    found = []
    files: dict[Literal["own", "root"], Path] = {"own": kit.certificate_file, "root": kit.root_file}
    for which, path in files.items():
        facts = describe_certificate(load_certificate(path))
        due = [days for days in CERTIFICATE_DAYS if facts.days_left(now) < days]
        if due:
            notice = Notice(
                event="certificate_ends",
                site=kit.name,
                time=now,
                certificate=which,
                days_left=floor(facts.days_left(now)),
            )
            found.append((f"certificate_ends {facts.fingerprint} {min(due)}", notice))
    return found


def deliver(kit: Path, key: str, notice: Notice) -> list[Problem]:
    """Send a notice through the channels that have not been told yet, and wait for it.

    Args:
        kit: The kit's folder.
        key: What the notice is about; a channel is told each key once.
        notice: What to tell.

    Returns:
        Problems FMS-S013 or FMS-S012, one for each channel that failed now; also written to ``notices/failures.log``.

    Raises:
        FedfmsError: FMS-S012 for ``notify.yaml``; FMS-D011 when the memory cannot be written: then nothing was sent.
    """
    config = load_notify(kit)
    if config is None or not config.channels or notice.event not in config.events:
        return []
    with locked(kit / NOTICES_FOLDER):
        memory, now = _read_memory(kit), utc_now()
        told = dict(memory.told.get(key, {}))
        due = {name: channel for name, channel in config.channels.items() if name not in told}
        if not due:
            return []
        recent = {
            item: times
            for item, times in memory.told.items()
            if times and max(times.values()) > now - timedelta(days=_FORGET_DAYS)
        }
        # Before sending: what cannot be remembered would be sent with every task, so it is not sent at all.
        _write_memory(kit, memory.model_copy(update={"told": {**recent, key: told | dict.fromkeys(due, now)}}))
        problems = _send(kit, due, notice)
        told |= {name: now for name in due if name not in problems}
        tried = {name: trial for name, trial in memory.tried.items() if name not in problems}
        failing = _note_failures(kit, memory, due, problems)
        if told:
            recent[key] = told
        _write_memory(kit, _Memory(told=recent, failing=failing, tried=tried))
    return list(problems.values())


def try_channels(kit: Path, site: str, *, again: bool) -> dict[ChannelName, Problem | None]:
    """Send a marked trial notice and wait for it.

    Args:
        kit: The kit's folder.
        site: The participant's name.
        again: Also through channels that have worked with these settings in the last 30 days (`untried`).

    Returns:
        For each channel that was tried now, its problem FMS-S013 or FMS-S012, or None.

    Raises:
        FedfmsError: FMS-S012 for ``notify.yaml``; FMS-D011 when the memory cannot be written: then nothing was sent.
    """
    config = load_notify(kit)
    due = _due_trials(kit, config, again=again) if config is not None else {}
    if not due:
        return {}
    with locked(kit / NOTICES_FOLDER):
        memory, now = _read_memory(kit), utc_now()
        _write_memory(kit, memory)
        problems = _send(kit, due, Notice(event="test", site=site, time=now))
        tried = {name: trial for name, trial in memory.tried.items() if name not in due}
        tried |= {
            name: _Trial(time=now, sha256=_settings(channel)) for name, channel in due.items() if name not in problems
        }
        failing = _note_failures(kit, memory, due, problems)
        _write_memory(kit, memory.model_copy(update={"failing": failing, "tried": tried}))
    return {name: problems.get(name) for name in due}


def untried(kit: Path, config: NotifyConfig) -> list[ChannelName]:
    """Channels that have not worked with their present settings in the last 30 days, or failed since.

    Args:
        kit: The kit's folder.
        config: Its ``notify.yaml``.
    """
    return list(_due_trials(kit, config, again=False))


def _due_trials(kit: Path, config: NotifyConfig, *, again: bool) -> dict[ChannelName, Channel]:
    memory, oldest = _read_memory(kit), utc_now() - timedelta(days=TRIAL_DAYS)

    def works(name: ChannelName, channel: Channel) -> bool:
        trial = memory.tried.get(name)
        return trial is not None and trial.sha256 == _settings(channel) and trial.time > oldest

    return {name: channel for name, channel in config.channels.items() if again or not works(name, channel)}


def _settings(channel: Channel) -> str:
    return sha256_json(channel.model_dump(mode="json"))


def _send(kit: Path, channels: dict[ChannelName, Channel], notice: Notice) -> dict[ChannelName, Problem]:
    """Send through each channel; the problems of those that failed."""
    problems: dict[ChannelName, Problem] = {}
    for name, channel in channels.items():
        try:
            send(kit, channel, notice)
        except FedfmsError as error:
            problems[name] = error.problems[0]
        except (OSError, ValueError, RuntimeError, HTTPException) as error:
            problems[name] = Problem(NOTICE_FAILED, f"{kit / NOTIFY_FILE}: {name}", reason_of(error))
    return problems


def _note_failures(
    kit: Path, memory: _Memory, tried: Iterable[ChannelName], problems: dict[ChannelName, Problem]
) -> dict[ChannelName, str]:
    """Write new failures to the log. Returns how each channel fails now."""
    failing = {name: text for name, text in memory.failing.items() if name not in tried}
    for name, problem in problems.items():
        failing[name] = _line(str(problem))
        if memory.failing.get(name) != failing[name]:
            _log_failure(kit, failing[name])
    return failing


def _log_failure(kit: Path, text: str) -> None:
    """Append to ``notices/failures.log``, for its owner alone."""
    path = kit / FAILURES_FILE
    make_closed(path.parent)
    path.touch(mode=0o600)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{utc_now().isoformat(timespec='seconds')} {text}\n")


def _line(text: str) -> str:
    """A text as one line of the log: what libraries and servers say may have several."""
    return " ".join(text.split())


def _read_memory(kit: Path) -> _Memory:
    """What was told. A damaged file counts as none and is written anew: that costs one repetition."""
    path = kit / MEMORY_FILE
    try:
        return validated(_Memory, read_json(path, NOTICE_FAILED), NOTICE_FAILED, path)
    except FedfmsError:
        return _Memory()


def _write_memory(kit: Path, memory: _Memory) -> None:
    write_json(kit / MEMORY_FILE, memory.model_dump(mode="json"))


@contextmanager
def _never_raises(kit: Path) -> Iterator[None]:
    """For what must not cost a task anything: a fault is logged, once, and not raised."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the task is worth more
        text = _line(str(error) if isinstance(error, FedfmsError) else f"{NOTICE_FAILED.id} {reason_of(error)}")
        try:
            if text not in _logged_last(kit):
                _log_failure(kit, text)
        except OSError as failure:
            print(f"{text}; {FAILURES_FILE} cannot be written: {reason_of(failure)}", file=sys.stderr, flush=True)


def _logged_last(kit: Path) -> str:
    """The last line of the log; empty where there is none."""
    path = kit / FAILURES_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return lines[-1] if lines else ""


def _tell(kit: Path, key: str, notice: Notice) -> None:
    """Start the process that sends, and return at once."""
    # Its own session, and no stream of this process: it may outlive it.
    process = subprocess.Popen(
        [sys.executable, "-m", "fedfms.site.notices", str(kit)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    with process.stdin as stream, suppress(BrokenPipeError):
        stream.write(json.dumps({"key": key, "notice": notice.model_dump(mode="json")}).encode())
    threading.Thread(target=process.wait, daemon=True).start()


def main(kit: Path, content: dict[str, Any]) -> None:
    """The process that sends: deliver the notice of one call of `tell_review_waits` and its like."""
    signal.alarm(_PROCESS_SECONDS)
    with _never_raises(kit):
        deliver(kit, content["key"], Notice.model_validate(content["notice"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.load(sys.stdin))
