"""What the checks share: the kit, the options, and facts that several checks need and that take time to find."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from cryptography.x509 import Certificate

from fedfms.data.description.site import SiteDescription, load_site
from fedfms.data.quality.check import CheckReport, check_site
from fedfms.doctor.connection import Contact, make_contact
from fedfms.errors import (
    CERTIFICATE_CHAIN,
    CERTIFICATE_KEY,
    JOB,
    KIT_RECORD,
    POLICY_UNUSABLE,
    SITE_FILE,
    ErrorKind,
    FedfmsError,
    Problem,
)
from fedfms.job.training import TrainingJob, load_job
from fedfms.sam.backbones import BACKBONES, has_weight_file, published_sha256
from fedfms.sam.config import Scope
from fedfms.site.application import TRAINING
from fedfms.site.certificates import key_matches, load_certificate
from fedfms.site.job_check import application_folder
from fedfms.site.kit import Kit, KitRecord, read_record
from fedfms.site.policy import POLICY_FILE, SitePolicy, load_policy

# The least work first.
_SCOPES: tuple[Scope, ...] = ("decoder", "adapters+decoder", "full")


class NotKnown(FedfmsError):
    """A fact that several checks need, and that could not be found.

    Attributes:
        reported_by: The check that says why. The others only say that they were not done.
    """

    def __init__(self, problems: Iterable[Problem], reported_by: ErrorKind) -> None:
        super().__init__(problems)
        self.reported_by = reported_by


@contextmanager
def reported_by(kind: ErrorKind) -> Iterator[None]:
    """What is raised in here is for the check of this kind to report.

    Raises:
        NotKnown: with the problems of the ``FedfmsError`` that was raised.
    """
    try:
        yield
    except FedfmsError as error:
        raise NotKnown(error.problems, kind) from error


@dataclass
class Examination:
    """One run of the doctor.

    Attributes:
        kit: The kit that is checked.
        job_folder: The job to prepare for; None for any job that the policy allows.
        offline: Do not connect to the server.
        quick: Read no data and time no training step.
        patience: Seconds to wait for a server that is just starting.
    """

    kit: Kit
    job_folder: Path | None = None
    offline: bool = False
    quick: bool = False
    patience: float = 0.0

    @property
    def now(self) -> datetime:
        """The machine's present time, UTC."""
        return datetime.now(timezone.utc)

    @property
    def site_file(self) -> Path:
        """Path of ``local/site.yaml``, whether or not it exists."""
        return self.kit.local / "site.yaml"

    @cached_property
    def record(self) -> KitRecord:
        """The kit's record; raises FMS-K001 if it cannot be read."""
        with reported_by(KIT_RECORD):
            return read_record(self.kit)

    @cached_property
    def root(self) -> Certificate:
        """The project's root certificate in the kit; raises FMS-K010 if it cannot be read."""
        with reported_by(CERTIFICATE_CHAIN):
            return load_certificate(self.kit.root_file)

    @cached_property
    def key_fits(self) -> bool:
        """Whether the private key belongs to the certificate; raises FMS-K010 if it cannot be read."""
        with reported_by(CERTIFICATE_KEY):
            return key_matches(self.kit.key_file, load_certificate(self.kit.certificate_file))

    @cached_property
    def policy(self) -> SitePolicy:
        """The site's policy; raises FMS-S001 if it cannot be read."""
        with reported_by(POLICY_UNUSABLE):
            return load_policy(self.kit.local / POLICY_FILE)

    @cached_property
    def site(self) -> SiteDescription:
        """The site's description of its data; raises FMS-D001 or FMS-D002 if it cannot be read."""
        with reported_by(SITE_FILE):
            return load_site(self.site_file)

    @cached_property
    def data(self) -> CheckReport:
        """The check of the site's data in the job's slices, which reads every file."""
        return check_site(self.site_file, plane=self.job.preprocessing.slice_axis)

    @cached_property
    def contact(self) -> Contact:
        """The result of the only connection to the server."""
        return make_contact(self.kit, self.patience)

    @cached_property
    def application(self) -> Path:
        """The application folder of the job; without a job, the one that is part of the package."""
        if self.job_folder is not None:
            with reported_by(JOB):
                return application_folder(self.job_folder)
        return Path(str(files("fedfms.doctor") / "application"))

    @cached_property
    def job(self) -> TrainingJob:
        """The job; without one, the package's own, changed to what the policy allows if that can be read."""
        with reported_by(JOB):
            job = load_job(self.application / TRAINING)
        if self.job_folder is not None:
            return job
        try:
            return fitted(job, self.policy, [name for name in BACKBONES if has_weight_file(name)])
        except FedfmsError:
            return job


def known_backbones() -> dict[str, str]:
    """Names of the backbones, by the SHA-256 of the published weight file."""
    return {published_sha256(name): name for name in BACKBONES}


def fitted(job: TrainingJob, policy: SitePolicy, present: Collection[str] = ()) -> TrainingJob:
    """Change scope, backbone, norm limit and length of a job to what the policy allows, so that a good update passes.

    A backbone of the policy that is not a published one keeps the job's own name.

    Args:
        job: The job.
        policy: The policy.
        present: Names of the backbones that have a weight file here; these are taken first.
    """
    content = job.model_dump(mode="json")
    if job.scope not in policy.scopes:
        content["scope"] = next(scope for scope in _SCOPES if scope in policy.scopes)
    if policy.backbones != "any" and job.backbone_sha256 not in policy.backbones:
        known = known_backbones()
        published = [item for item in policy.backbones if item in known]
        here = [item for item in published if known[item] in present]
        digest = next(iter([*here, *published, *policy.backbones]))
        content["backbone_sha256"], content["backbone"] = digest, known.get(digest, job.backbone)
        native = BACKBONES[content["backbone"]].native_size
        content["preprocessing"]["input_size"] = native
    content["rounds"] = min(job.rounds, policy.max_rounds)
    content["update_norm_limit"] = min(job.update_norm_limit, policy.update_norm_limit)
    if job.local_work.steps is not None:
        least = -(-policy.min_slices_per_update // job.batch_size)
        content["local_work"]["steps"] = max(job.local_work.steps, least)
    return TrainingJob.model_validate(content)
