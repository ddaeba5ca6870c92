"""Whether the people of a kit can be notified: ``local/notify.yaml``, tried by a marked notice."""

from __future__ import annotations

from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Result, passed, warned
from fedfms.errors import NOTICES, FedfmsError
from fedfms.site.notices import certificate_notices, deliver, try_channels, untried
from fedfms.site.notify_config import load_notify


def notices(examination: Examination) -> Result:
    """``notify.yaml`` is valid, and each channel accepts a notice; tells the end of a certificate, if it is near.

    A channel that worked in the last 30 days with the same settings gets no trial notice: a service that is restarted
    again and again would send one each time.
    """
    kit = examination.kit
    config = load_notify(kit.folder)
    if config is None or not config.channels:
        return passed(NOTICES, "nobody is notified: local/notify.yaml names no command, web address or mail server")
    named = f"{', '.join(config.events)} by {', '.join(config.channels)}"
    if examination.offline:
        if waiting := untried(kit.folder, config):
            remedy = "Let 'fedfms doctor' run again without --offline."
            return warned(NOTICES, f"{named}; not tried (--offline): {', '.join(waiting)}", remedy)
        return passed(NOTICES, f"{named}; all have worked in the last 30 days")
    tried = try_channels(kit.folder, kit.name, again=False)
    failures = [f"{name} {problem.kind.id}" for name, problem in tried.items() if problem is not None]
    try:
        for key, notice in certificate_notices(kit):
            deliver(kit.folder, key, notice)
    except FedfmsError:
        failures.append("the end of a certificate could not be told")
    if failures:
        return warned(NOTICES, f"{named}; {'; '.join(failures)}")
    done = f"a trial notice went to {', '.join(tried)}" if tried else "all have worked in the last 30 days"
    return passed(NOTICES, f"{named}; {done}")
