"""Old names of modules, functions and classes: they still work, with a DeprecationWarning that gives the new name.

``import fedfms`` puts a finder last on ``sys.meta_path``. Python asks it only for modules that do not exist, and for
those of ``MODULES`` it makes one whose names are looked up in the module that took its place. Classes and functions
are therefore the same objects under both names. Packages that now have the name of an old module, and modules that
renamed something, look old names up with ``former_names``.

Type checkers know the new names only.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

#: Old module or package -> new one.
MODULES = {
    "fedfms.cli.outcome": "fedfms.cli.results",
    "fedfms.data.check": "fedfms.data.quality.check",
    "fedfms.data.dataset": "fedfms.data.slices.dataset",
    "fedfms.data.dicom": "fedfms.data.dicom.image",
    "fedfms.data.dicom_codecs": "fedfms.data.dicom.codecs",
    "fedfms.data.dicom_files": "fedfms.data.dicom.series",
    "fedfms.data.dicom_frames": "fedfms.data.dicom.frames",
    "fedfms.data.dicom_pixels": "fedfms.data.dicom.pixels",
    "fedfms.data.dicom_seg": "fedfms.data.dicom.seg",
    "fedfms.data.dicom_stack": "fedfms.data.dicom.stack",
    "fedfms.data.discovery": "fedfms.data.slices.discovery",
    "fedfms.data.drawn_on": "fedfms.data.dicom.references",
    "fedfms.data.facts": "fedfms.data.slices.facts",
    "fedfms.data.fingerprint": "fedfms.data.slices.fingerprint",
    "fedfms.data.first_site": "fedfms.data.authoring.first_site",
    "fedfms.data.formats": "fedfms.data.readers.formats",
    "fedfms.data.geometry": "fedfms.data.volume.geometry",
    "fedfms.data.intensity": "fedfms.data.slices.intensity",
    "fedfms.data.itk": "fedfms.data.readers.itk",
    "fedfms.data.label_values": "fedfms.data.description.label_values",
    "fedfms.data.masks": "fedfms.data.readers.masks",
    "fedfms.data.nifti": "fedfms.data.readers.nifti",
    "fedfms.data.pattern": "fedfms.data.description.pattern",
    "fedfms.data.phantom": "fedfms.datasets.phantom",
    "fedfms.data.phantom_anatomy": "fedfms.datasets.phantom_anatomy",
    "fedfms.data.pixels": "fedfms.data.slices.case_pixels",
    "fedfms.data.preparation": "fedfms.data.slices.preparation",
    "fedfms.data.preprocessing": "fedfms.preprocessing",
    "fedfms.data.raster": "fedfms.data.readers.raster",
    "fedfms.data.recipes": "fedfms.datasets.recipes",
    "fedfms.data.remedies": "fedfms.data.volume.remedies",
    "fedfms.data.rtstruct": "fedfms.data.dicom.rtstruct",
    "fedfms.data.site": "fedfms.data.description.site",
    "fedfms.data.site_yaml": "fedfms.data.authoring.site_yaml",
    "fedfms.data.sites_from_folders": "fedfms.data.authoring.sites_from_folders",
    "fedfms.data.split": "fedfms.data.slices.split",
    "fedfms.data.verification": "fedfms.data.slices.verification",
    "fedfms.doctor.audit": "fedfms.doctor.checkup",
    "fedfms.exchange": "fedfms.exchange.messages",
    "fedfms.exchanged_state": "fedfms.exchange.state",
    "fedfms.flare.run": "fedfms.flare.context",
    "fedfms.flare.weighted_sum": "fedfms.aggregation.weighted_sum",
    "fedfms.job": "fedfms.job.training",
    "fedfms.job_folder": "fedfms.job.folder",
    "fedfms.prediction.run": "fedfms.prediction.cases",
    "fedfms.report": "fedfms.results",
    "fedfms.report.ledger": "fedfms.results.run_result",
    "fedfms.report.run": "fedfms.results.run_folder",
    "fedfms.report.scores": "fedfms.results.evaluation_tables",
    "fedfms.report.tables": "fedfms.results.run_tables",
    "fedfms.reports": "fedfms.exchange.replies",
    "fedfms.site.place": "fedfms.site.job_location",
}
#: Old packages; their modules are in the new package under the same name, unless ``MODULES`` says more.
_PACKAGES = ("fedfms.data.first_site", "fedfms.data.recipes", "fedfms.report")
#: Names that have changed, or are in another module than ``MODULES`` says: old one, in its old module -> new one.
NAMES = {
    "fedfms.data.dataset.open_dataset": "fedfms.data.slices.opening.open_dataset",
    "fedfms.data.dicom.read_image": "fedfms.data.dicom.image.read_dicom_image",
    "fedfms.data.dicom.read_series": "fedfms.data.dicom.image.read_dicom_volume",
    "fedfms.data.dicom.read_grid": "fedfms.data.dicom.image.read_dicom_grid",
    "fedfms.data.dicom.patient_id": "fedfms.data.dicom.image.read_patient_id",
    "fedfms.data.dicom.burned_in": "fedfms.data.dicom.image.count_burned_in",
    "fedfms.data.dicom_files.Series": "fedfms.data.description.series.Series",
    "fedfms.data.dicom_files.SeriesChoice": "fedfms.data.description.series.SeriesChoice",
    "fedfms.data.dicom_files.Kind": "fedfms.data.description.series.ObjectKind",
    "fedfms.data.drawn_on.drawn_on": "fedfms.data.dicom.references.referenced_series",
    "fedfms.data.geometry.place": "fedfms.data.volume.geometry.locate_in_grid",
    "fedfms.data.geometry.onto_grid": "fedfms.data.volume.geometry.reorder_onto",
    "fedfms.exchange.Terms": "fedfms.exchange.messages.JobContract",
    "fedfms.reports.Kind": "fedfms.exchange.replies.TaskKind",
    "fedfms.flare.run.run_terms": "fedfms.flare.context.run_contract",
    "fedfms.flare.run.place_of": "fedfms.flare.context.job_location",
    "fedfms.prediction.run.Wishes": "fedfms.prediction.cases.PredictOptions",
    "fedfms.prediction.run.check_wishes": "fedfms.prediction.cases.check_options",
    "fedfms.provision.authority.Barring": "fedfms.provision.authority.Block",
    "fedfms.provision.certificate_request.Kind": "fedfms.provision.certificate_request.ParticipantKind",
    "fedfms.site.place.Place": "fedfms.site.job_location.JobLocation",
    "fedfms.site.review.Waiting": "fedfms.site.review.PendingJob",
    "fedfms.site.review.write_waiting": "fedfms.site.review.write_pending",
    "fedfms.site.review.clear_waiting": "fedfms.site.review.clear_pending",
    "fedfms.site.review.waiting_jobs": "fedfms.site.review.pending_jobs",
}


def install() -> None:
    """Let Python find the old modules."""
    sys.meta_path.append(_Finder())


def former_names(module: str, *, is_announced: bool = False) -> Callable[[str], object]:
    """A ``__getattr__`` for a module (PEP 562) that finds its old names; any other name is an AttributeError.

    Args:
        module: The module or package, by its old name.
        is_announced: Its user has been told that the module has moved: only names that have changed are told too.
    """

    def look_up(name: str) -> object:
        old = f"{module}.{name}"
        new = NAMES.get(old)
        # Python asks a package for the name of a module in it before it imports that: it is not an old name.
        if new is None and (moved := _new_module(module)) and not name.startswith("__"):
            new = f"{moved}.{name}" if is_announced or find_spec(old) is None else None
        owner, _, attribute = (new or old).rpartition(".")
        if new is None or not hasattr(import_module(owner), attribute):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if old in NAMES or not is_announced:
            _warn(old, new)
        found: object = getattr(import_module(owner), attribute)
        return found

    return look_up


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=fullname in _PACKAGES) if _new_module(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = import_module(str(_new_module(old)))
        _warn(old, new.__name__)
        module.__doc__ = new.__doc__
        module.__dict__["__getattr__"] = former_names(old, is_announced=True)


def _new_module(old: str) -> str | None:
    package, _, name = old.rpartition(".")
    return MODULES.get(old) or (f"{MODULES[package]}.{name}" if package in _PACKAGES else None)


def _warn(old: str, new: str) -> None:
    # Attributed to the import or the use. Two frames of this module are between, and those of importlib do not count.
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
