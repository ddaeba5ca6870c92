"""The text of a ``site.yaml`` for people to read, with a comment at every guess."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_VALIDATION = 0.2


@dataclass(frozen=True)
class Manifest:
    """A manifest (path relative to root), and its column with the path of the image."""

    file: str
    image_column: str


@dataclass(frozen=True)
class Patient:
    """The patient rule, the value of its ``column`` or ``expression``, and a comment on it."""

    rule: Literal["each_image", "column", "name"]
    value: str | None = None
    comment: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskText:
    """One mask source.

    Attributes:
        folder: Folder of the masks, in the hospital's folder.
        suffix: What follows ``{case}`` in the file names.
        labels: Structure -> values.
        ignored: Values that belong to no structure.
        absent: Number of images without such a mask.
        above: Values above it are inside; as in ``site.yaml``.
    """

    folder: str
    suffix: str
    labels: dict[str, tuple[int, ...] | Literal["nonzero"]]
    ignored: tuple[int, ...]
    absent: int
    above: int | None = None


@dataclass(frozen=True)
class Split:
    """The split rule, and the reason for it; ``column_and_draw`` draws validation patients from the training rows."""

    rule: Literal["by_patient", "column", "column_and_draw"]
    reason: str


@dataclass(frozen=True)
class SiteText:
    """Content of the file.

    Attributes:
        header: First line.
        name, task, format, root: As in ``site.yaml``.
        prefix: Path from root to the hospital's folder; empty, or with a slash at its end.
        images: What follows ``{case}`` in the file names of the images.
        manifest: The manifest, if there is one.
        masks: Mask sources.
        patient: Patient rule.
        split: Split rule.
    """

    header: str
    name: str
    task: str
    format: str
    root: Path
    prefix: str
    images: str
    manifest: Manifest | None
    masks: tuple[MaskText, ...]
    patient: Patient
    split: Split

    def render(self) -> str:
        """The YAML text."""
        lines = [
            self.header.rstrip("\n"),
            "# Every key is explained in docs/site-data.md. Check it with: fedfms data check FILE",
            "datasets:",
            f"  - name: {quoted(self.name)}",
            f"    task: {quoted(self.task)}  # the name by which jobs ask for this data",
            f"    format: {self.format}",
            f"    root: {quoted(str(self.root))}  # all other paths are relative to it",
            *self._image_lines(),
            *self._mask_lines(),
            *self._patient_lines(),
            *self._split_lines(),
        ]
        return "\n".join(lines) + "\n"

    def _image_lines(self) -> list[str]:
        if self.manifest is None:
            return ["    images:", f"      pattern: {quoted(f'{self.prefix}images/{{case}}{self.images}')}"]
        return [
            "    images:",
            f"      manifest: {quoted(self.manifest.file)}",
            f"      column: {quoted(self.manifest.image_column)}  # holds the image's path",
            f"      folder: {quoted(self.prefix + 'images')}  # only this hospital's rows",
        ]

    def _mask_lines(self) -> list[str]:
        if not self.masks:
            return ["    masks: []  # none of the named mask folders is there"]
        lines = ["    masks:"]
        for mask in self.masks:
            lines.append(f"      - pattern: {quoted(f'{self.prefix}{mask.folder}/{{case}}{mask.suffix}')}")
            lines.append("        labels:  # structure: value or values in the mask files")
            for name, values in mask.labels.items():
                shown = values if values == "nonzero" else values[0] if len(values) == 1 else list(values)
                lines.append(f"          {quoted(name)}: {shown}")
            if mask.above is not None:
                lines.append(f"        above: {mask.above}  # soft edges: larger values are inside")
            if mask.ignored:
                lines.append(f"        ignore_values: {list(mask.ignored)}  # in the masks, but of no structure")
            if mask.absent:
                lines.append(f"        required: false  # {mask.absent} images have no such mask: not annotated")
        return lines

    def _patient_lines(self) -> list[str]:
        lines = [
            "    patient:",
            *(f"      # {line}" for line in self.patient.comment),
            f"      rule: {self.patient.rule}",
        ]
        key = {"column": "column", "name": "expression"}.get(self.patient.rule)
        return lines if key is None else [*lines, f"      {key}: {quoted(self.patient.value or '')}"]

    def _split_lines(self) -> list[str]:
        lines = ["    split:", f"      # {self.split.reason}"]
        if self.split.rule == "by_patient":
            return [*lines, "      rule: by_patient", f"      validation: {_VALIDATION}", "      seed: 0"]
        lines += ["      rule: column", "      column: split"]
        if self.split.rule == "column_and_draw":
            lines += [f"      validation_from_train: {_VALIDATION}", "      seed: 0"]
        return lines


def quoted(text: str) -> str:
    """The text as a YAML scalar."""
    # A JSON string is a YAML string; plain words stay plain.
    return (
        text
        if text.replace("-", "").replace("_", "").isalnum() and text[0].isalpha() and not _special(text)
        else (json.dumps(text, ensure_ascii=False))
    )


def _special(text: str) -> bool:
    return text.lower() in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
