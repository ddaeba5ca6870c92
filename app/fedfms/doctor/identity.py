"""Checks of the kit's identity: certificate, key, record, clock."""

from __future__ import annotations

from datetime import datetime, timedelta

from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Result, failed, passed, warned
from fedfms.errors import CERTIFICATE_CHAIN, CERTIFICATE_KEY, CERTIFICATE_VALIDITY, CLOCK, KIT_RECORD
from fedfms.site.certificates import (
    RENEWAL_DAYS,
    describe_certificate,
    fingerprint,
    is_authority,
    is_issued_by,
    load_certificate,
)

#: Difference from the server's clock, in seconds.
CLOCK_WARN, CLOCK_FAIL = 60.0, 600.0


def chain(examination: Examination) -> Result:
    """The kit's certificate is signed by its root, and the root is the one that the record names."""
    kit = examination.kit
    certificate, root = load_certificate(kit.certificate_file), examination.root
    if not is_authority(root):
        return failed(CERTIFICATE_CHAIN, f"startup/{kit.root_file.name} is not a self-signed root certificate")
    if not is_issued_by(certificate, root):
        name = kit.certificate_file.name
        return failed(CERTIFICATE_CHAIN, f"startup/{name} is not signed by startup/rootCA.pem ({fingerprint(root)})")
    expected = examination.record.root_fingerprint
    if fingerprint(root) != expected:
        return failed(CERTIFICATE_CHAIN, f"the root is {fingerprint(root)}, the kit was made for {expected}")
    return passed(CERTIFICATE_CHAIN, f"signed by the project's root {expected}")


def key(examination: Examination) -> Result:
    """The private key belongs to the certificate."""
    kit = examination.kit
    if not examination.key_fits:
        return failed(CERTIFICATE_KEY, f"startup/{kit.key_file.name} is the key of another certificate")
    return passed(CERTIFICATE_KEY, "key and certificate belong together")


def validity(examination: Examination) -> list[Result]:
    """Certificate and root are valid now, and for how long."""
    kit, now = examination.kit, examination.now
    results = []
    files = ((kit.certificate_file, load_certificate(kit.certificate_file)), (kit.root_file, examination.root))
    for path, certificate in files:
        facts = describe_certificate(certificate)
        left, name = facts.days_left(now), f"startup/{path.name}"
        if left < 0:
            results.append(failed(CERTIFICATE_VALIDITY, f"{name} expired on {_day(facts.not_after)}"))
        elif now < facts.not_before:
            results.append(failed(CERTIFICATE_VALIDITY, f"{name} is valid only from {_day(facts.not_before)}"))
        elif left < RENEWAL_DAYS:
            results.append(warned(CERTIFICATE_VALIDITY, f"{name} expires in {left:.0f} days, {_day(facts.not_after)}"))
        else:
            results.append(passed(CERTIFICATE_VALIDITY, f"{name}: {left:.0f} days left, {_day(facts.not_after)}"))
    return results


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def clock(examination: Examination) -> Result:
    """Compare the clock with the server's if it sends the time; otherwise with the time at which the kit was made."""
    made = datetime.fromisoformat(examination.record.provisioned)
    if examination.now < made - timedelta(seconds=CLOCK_FAIL):
        return failed(CLOCK, f"it is {_day(examination.now)} here, but the kit was made on {_day(made)}")
    compared = not examination.offline and examination.kit.kind != "server"
    off = examination.contact.seconds_off if compared else None
    if off is None:
        text = f"{_day(examination.now)}, after the kit was made"
        if examination.kit.kind == "server":
            return passed(CLOCK, f"{text}; the sites compare theirs with this one")
        remedy = "Compare the two clocks yourself, or see that both machines use network time (NTP)."
        return warned(CLOCK, f"{text}; NOT compared with the server's clock", remedy)
    if abs(off) >= CLOCK_WARN:
        text = f"{abs(off):.0f} seconds {'ahead of' if off > 0 else 'behind'} the server"
        return failed(CLOCK, text) if abs(off) >= CLOCK_FAIL else warned(CLOCK, text)
    return passed(CLOCK, f"within {max(1.0, abs(off)):.0f} s of the server's")


def record(examination: Examination) -> Result:
    """FLARE's own file and the certificate say the same as the kit's record."""
    kit, found = examination.kit, examination.record
    pairs = {
        "project": (kit.project, found.project),
        "kind": (kit.kind, found.kind),
        "name": (kit.name, found.name),
        "server": (kit.server, found.server),
    }
    different = [f"{name} is {here}, the record says {there}" for name, (here, there) in pairs.items() if here != there]
    if different:
        return failed(KIT_RECORD, "; ".join(different))
    where = f"{kit.server.host}:{kit.server.port}"
    return passed(KIT_RECORD, f"{kit.kind} {kit.name} of {kit.project}, server {where}")
