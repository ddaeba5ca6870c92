"""``site.yaml``: the description of a hospital's data. It never leaves the site.

``docs/site-data.md`` explains every key for the person who writes the file; a test checks that it names all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from fedfms.configuration import (
    NOT_A_TRUTH_VALUE,
    Strict,
    StructureName,
    TaskName,
    TruthValue,
    in_words,
    read_yaml,
    validated,
)
from fedfms.data.description.label_values import LabelValues, NonEmpty
from fedfms.data.description.pattern import PathPattern
from fedfms.data.description.series import SeriesChoice
from fedfms.errors import SITE_INVALID, SITE_UNREADABLE

DatasetName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"),
    in_words("a name of at most 64 letters, digits, '_', '.' and '-'"),
]
# Bounds come before the validator: otherwise pydantic leaves them out of the JSON schema.
Fraction = Annotated[float, Field(ge=0, lt=1), NOT_A_TRUTH_VALUE]
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
#: The two affines that a NIfTI header may have (nifti1.h, "3D IMAGE ORIENTATION").
NiftiAffine = Literal["sform", "qform"]


_Sized = TypeVar("_Sized", bound=Sized)


def _not_empty(value: _Sized) -> _Sized:
    # Not Field(min_length): pydantic counts wrong entries as absent and would report a second, false problem.
    if not value:
        raise ValueError("give at least one")
    return value


class Compute(Strict):
    """What the training process may use on this machine.

    Attributes:
        device: ``auto`` uses the GPU when there is one.
        threads: CPU threads; null leaves the number to PyTorch.
        max_batch: Most slices computed at once; gradients are accumulated up to the job's batch size. Null: no limit.
        cache_dir: Folder for the cache of encoder outputs; null: the client's run folder.
        cache_gb: Largest size of the cache in GB (10^9 bytes).
        gradient_checkpointing: Uses less memory and about a third more time.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(strict=True, ge=1, le=1024)] | None = None
    max_batch: Annotated[int, Field(strict=True, ge=1, le=1024)] | None = None
    cache_dir: Path | None = None
    cache_gb: Annotated[float, Field(ge=0), NOT_A_TRUTH_VALUE] = 20.0
    gradient_checkpointing: TruthValue = False


class ImageSource(Strict):
    """Where the images are: a pattern, or a manifest (a CSV file) with one row per image.

    Attributes:
        pattern: Path below root with ``{case}`` and possibly ``{patient}``; ``*`` matches any text. With format dicom
            it matches folders, each with one case, or files when it ends in ``.dcm``.
        manifest: CSV file with a header line; relative to root.
        column: Column of the manifest with the path of the image, relative to root.
        folder: Use only the rows of the manifest whose image is in this folder (relative to root).
        files: Format dicom only: which files of the folder are read, such as ``*.dcm``, or ``*/*.dcm`` for those in
            its sub-folders.
        series: Format dicom only: which series of the folder is the case.
        affine: Format nifti only: which affine counts in files whose sform and qform disagree.
    """

    pattern: NonEmpty | None = None
    manifest: Path | None = None
    column: NonEmpty | None = None
    folder: NonEmpty | None = None
    files: NonEmpty | None = None
    series: SeriesChoice | None = None
    affine: NiftiAffine | None = None

    @model_validator(mode="after")
    def _one_way(self) -> ImageSource:
        wrong = []
        if (self.pattern is None) == (self.manifest is None):
            wrong.append("give either pattern or manifest")
        if self.manifest is not None and self.column is None:
            wrong.append("manifest needs column, the name of the column with the image's path")
        if self.manifest is None and (self.column is not None or self.folder is not None):
            wrong.append("column and folder belong to manifest")
        if self.pattern is not None:
            wrong += PathPattern.faults(self.pattern, needs=("case",))
            if self.files is not None and self.names_dicom_files:
                wrong.append("files is for a pattern that names folders")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def names_dicom_files(self) -> bool:
        """Whether the pattern matches DICOM files, not folders."""
        return (self.pattern or "").lower().endswith(".dcm")


class MaskSource(Strict):
    """One set of mask files and the meaning of their values.

    Attributes:
        pattern: Path below root of the mask of the image with the same ``{case}``.
        column: Instead of a pattern: column of the manifest with the path of the mask, relative to root.
        labels: Structure -> its values in these files. Two structures may have the same value (they overlap). In
            label maps: numbers. In a DICOM SEG: segment numbers, segment labels, coded meanings or codes. In an
            RTSTRUCT: names of ROIs. ``nonzero`` means every value but 0, every segment, every ROI.
        ignore_values: Values of label maps that belong to no structure. 0 need not be listed.
        required: False: an image may have no such mask, and a SEG or RTSTRUCT may lack a structure; the image then
            counts as not annotated for it.
        affine: Which affine counts in NIfTI files whose sform and qform disagree.
        above: For masks with soft edges (JPEG, smoothed, probabilities): the structure is where the value is larger
            than this number. Its value under ``labels`` is then ``nonzero``.
    """

    pattern: NonEmpty | None = None
    column: NonEmpty | None = None
    labels: Annotated[
        dict[StructureName, LabelValues],
        AfterValidator(_not_empty),
        Field(json_schema_extra={"minProperties": 1, "additionalProperties": False}),
    ]
    ignore_values: tuple[Annotated[int, Field(strict=True)], ...] = ()
    required: TruthValue = True
    affine: NiftiAffine | None = None
    above: Annotated[float, Field(ge=0, allow_inf_nan=False), NOT_A_TRUTH_VALUE] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> MaskSource:
        wrong = []
        if self.above is not None and (self.ignore_values or any(item != "nonzero" for item in self.labels.values())):
            wrong.append("with above, the value of a structure under labels is nonzero, and ignore_values is empty")
        if (self.pattern is None) == (self.column is None):
            wrong.append("give either pattern or column")
        if self.pattern is not None:
            wrong += PathPattern.faults(self.pattern, needs=("case", "patient"))
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class EachImage(Strict):
    """Every image shows a different patient."""

    rule: Literal["each_image"]


class PatientFromPattern(Strict):
    """The patient is the text of ``{patient}`` in the pattern of the images."""

    rule: Literal["pattern"]


class PatientFromColumn(Strict):
    """The patient is in a column of the manifest."""

    rule: Literal["column"]
    column: NonEmpty


class PatientFromName(Strict):
    """The patient is the one group of a regular expression on the text of ``{case}``."""

    rule: Literal["name"]
    expression: NonEmpty

    @field_validator("expression")
    @classmethod
    def _compiles(cls, value: str) -> str:
        import re

        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if groups != 1:
            raise ValueError("the expression needs exactly one group in round brackets: the patient")
        return value


class PatientFromDicom(Strict):
    """The patient is PatientID (0010,0020) of the DICOM series."""

    rule: Literal["dicom_patient_id"]


PatientRule = Annotated[
    EachImage | PatientFromPattern | PatientFromColumn | PatientFromName | PatientFromDicom,
    Field(discriminator="rule"),
]


class SplitByPatient(Strict):
    """Validation and test patients are drawn by chance; all others are for training.

    Attributes:
        validation: Fraction of the patients for validation.
        test: Fraction of the patients for test.
        seed: Seed of the draw; the same seed gives the same split.
    """

    rule: Literal["by_patient"]
    validation: Fraction = 0.2
    test: Fraction = 0.0
    seed: Annotated[int, Field(strict=True, ge=0)] = 0

    @model_validator(mode="after")
    def _some_train(self) -> SplitByPatient:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1, so that patients remain for training")
        return self


class SplitWords(Strict):
    """Which words in the split column mean train, validation and test."""

    train: tuple[NonEmpty, ...] = ("train",)
    validation: tuple[NonEmpty, ...] = ("validation", "val", "valid")
    test: tuple[NonEmpty, ...] = ("test",)

    @model_validator(mode="after")
    def _words_differ(self) -> SplitWords:
        counts = Counter((*self.train, *self.validation, *self.test))
        twice = sorted(word for word, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"these words mean two splits: {', '.join(twice)}")
        return self


class SplitByColumn(Strict):
    """A column of the manifest gives the split of each row.

    Attributes:
        column: Name of the column.
        words: The words in its cells.
        validation_from_train: For a column without validation rows: the fraction of the training patients to use for
            validation.
        seed: Seed of that draw.
    """

    rule: Literal["column"]
    column: NonEmpty
    words: SplitWords = SplitWords()
    validation_from_train: Annotated[float, Field(gt=0, lt=1), NOT_A_TRUTH_VALUE] | None = None
    seed: Annotated[int, Field(strict=True, ge=0)] = 0


SplitRule = Annotated[SplitByPatient | SplitByColumn, Field(discriminator="rule")]


class DatasetDescription(Strict):
    """Images of one kind with their masks.

    Attributes:
        name: Any name, unique in the file; used in messages on this machine.
        task: Name by which jobs ask for this data.
        format: ``raster`` (PNG, TIFF, JPEG), ``nifti``, ``itk`` (NRRD, MetaImage), or ``dicom`` (one series per
            folder).
        root: Folder that all other paths are relative to; itself relative to the folder of ``site.yaml``.
        images: Where the images are.
        masks: Where the masks are; empty for images that are only used for prediction.
        patient: How to find the patient of an image.
        split: How patients are divided into train, validation and test.
    """

    name: DatasetName
    task: TaskName
    format: Literal["raster", "nifti", "itk", "dicom"]
    root: Path
    images: ImageSource
    masks: tuple[MaskSource, ...] = ()
    patient: PatientRule
    split: SplitRule = SplitByPatient(rule="by_patient")

    @model_validator(mode="after")
    def _fits_together(self) -> DatasetDescription:
        wrong = []
        manifest = self.images.manifest is not None
        wrong += [
            f"images.{key} is for format {kind}"
            for key, kind in (("files", "dicom"), ("series", "dicom"), ("affine", "nifti"))
            if getattr(self.images, key) is not None and self.format != kind
        ]
        counts = Counter(name for source in self.masks for name in source.labels)
        wrong += [f"structure {name} is under two masks" for name, count in counts.items() if count > 1]
        for position, source in enumerate(self.masks):
            if source.column is not None and not manifest:
                wrong.append(f"masks.{position}.column needs images.manifest")
            if source.pattern and "{patient}" in source.pattern and "{patient}" not in (self.images.pattern or ""):
                wrong.append(f"masks.{position}.pattern has {{patient}}, but images.pattern has not")
        if isinstance(self.patient, PatientFromPattern) and "{patient}" not in (self.images.pattern or ""):
            wrong.append("patient.rule pattern needs {patient} in images.pattern")
        if isinstance(self.patient, PatientFromColumn) and not manifest:
            wrong.append("patient.rule column needs images.manifest")
        if isinstance(self.patient, PatientFromDicom) and self.format != "dicom":
            wrong.append("patient.rule dicom_patient_id is for format dicom")
        if isinstance(self.split, SplitByColumn) and not manifest:
            wrong.append("split.rule column needs images.manifest")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures under ``labels``, in the order of the file."""
        return tuple(name for source in self.masks for name in source.labels)


class SiteDescription(Strict):
    """Content of ``site.yaml``.

    Attributes:
        strict: True: a bad file stops the task. False: a case with bad files is left out, counted and shown.
        compute: What the training process may use on this machine.
        datasets: The data of the site.
    """

    strict: TruthValue = True
    compute: Compute = Compute()
    datasets: Annotated[
        tuple[DatasetDescription, ...], AfterValidator(_not_empty), Field(json_schema_extra={"minItems": 1})
    ]

    @model_validator(mode="after")
    def _names_differ(self) -> SiteDescription:
        counts = Counter(dataset.name for dataset in self.datasets)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"two datasets have the name {', '.join(twice)}")
        return self


def site_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of ``site.yaml``, for editors.

    It describes each key alone; ``load_site`` also checks keys that depend on each other.
    """
    schema = SiteDescription.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "FedFMS site.yaml"}


def load_site(path: Path) -> SiteDescription:
    """Read and check a ``site.yaml``.

    Returns:
        The description, with ``root`` and ``cache_dir`` as absolute paths.

    Raises:
        FedfmsError: FMS-D001 when it cannot be read, FMS-D002 with every wrong, missing or unknown key.
    """
    site = validated(SiteDescription, read_yaml(path, SITE_UNREADABLE), SITE_INVALID, path)
    folder = path.resolve().parent
    compute = site.compute
    if compute.cache_dir is not None:
        compute = compute.model_copy(update={"cache_dir": folder / compute.cache_dir})
    datasets = tuple(item.model_copy(update={"root": folder / item.root}) for item in site.datasets)
    return site.model_copy(update={"compute": compute, "datasets": datasets})
