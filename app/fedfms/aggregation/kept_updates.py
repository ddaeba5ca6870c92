"""The accepted updates of a round, kept on disk until it is closed, so that memory does not grow with the sites."""

from __future__ import annotations

import os
import tempfile
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedfms.access import unwritable
from fedfms.exchange.messages import Update, tensor_bytes
from fedfms.exchange.state import l2_norm
from fedfms.sam.scope import Schema, TensorSpec


class KeptUpdates:
    """The updates of one round in one file without a name, one after the other, as fp32 in schema order.

    The file has no name because the server's run folder becomes part of the job's result, which the study lead
    downloads: a site's single update must not be in it, also when the server's process is killed in the middle of a
    round. The operating system frees the file with the process.

    Args:
        schema: The exchanged tensors.
        folder: Where there is room; made when the first update is kept.

    Attributes:
        cases: Number of training cases per structure, by site.
        norms: L2 norm of the update over all its tensors, by site.
    """

    def __init__(self, schema: Schema, folder: Path) -> None:
        self.schema = schema
        self.cases: dict[str, dict[str, int]] = {}
        self.norms: dict[str, float] = {}
        self._folder = folder
        self._file: FileIO | None = None
        self._slots: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        offset = 0
        for spec in schema.tensors:
            self._offsets[spec.name] = offset
            offset += 4 * spec.size

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites whose updates count, sorted: never in the order of arrival."""
        return tuple(sorted(self.cases))

    def keep(self, update: Update) -> None:
        """Write one checked update of a site that has none here.

        Raises:
            FedfmsError: FMS-D011 when the disk is full; the update is not kept then, and those before it are.
        """
        slot = len(self._slots)
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                # Without a buffer: what does not fit on the disk must fail here and not at some later time.
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed by `close`
            for spec in self.schema.tensors:
                start = slot * self.schema.bytes + self._offsets[spec.name]
                _write(self._file.fileno(), tensor_bytes(update.tensors[spec.name]), start)
        except OSError as error:
            raise unwritable(self._folder, error) from error
        self._slots[update.site] = slot
        self.cases[update.site] = dict(update.cases)
        self.norms[update.site] = l2_norm(update.tensors)

    def exclude(self, site: str) -> None:
        """Let an update no longer count."""
        del self.cases[site], self.norms[site]

    def read(self, site: str, spec: TensorSpec, start: int = 0, stop: int | None = None) -> Tensor:
        """Values of one site's tensor.

        Args:
            site: One of `sites`.
            spec: One of the schema's tensors.
            start: First value, in row-major order.
            stop: The one after the last; None for all that follow.

        Returns:
            fp32, one axis, in memory of its own.
        """
        assert self._file is not None
        values: npt.NDArray[np.float32] = np.empty((spec.size if stop is None else stop) - start, dtype="<f4")
        _read(self._file.fileno(), values, self._slots[site] * self.schema.bytes + self._offsets[spec.name] + 4 * start)
        return torch.from_numpy(values)

    def close(self) -> None:
        """Free the file and forget the updates."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._slots, self.cases, self.norms = {}, {}, {}


def _write(descriptor: int, content: bytes, offset: int) -> None:
    view, done = memoryview(content), 0
    while done < len(view):  # one call writes at most 2 GiB, and less when a signal comes
        done += os.pwrite(descriptor, view[done:], offset + done)


def _read(descriptor: int, values: npt.NDArray[np.float32], offset: int) -> None:
    view, done = values.data.cast("B") if values.size else memoryview(b""), 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            raise OSError(f"the kept updates end {len(view) - done} bytes too early")
        done += count
