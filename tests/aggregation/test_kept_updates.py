"""Updates on disk: what was written is read, nothing has a name, and neither memory nor descriptors stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfms.errors import FedfmsError
from fedfms.sam.scope import Schema, TensorSpec
from tests.aggregation.builders import SCHEMA, keep, make_update, some_updates


def open_files() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(entry.readlink()))
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


def test_what_was_kept_is_read_whole_and_in_pieces(tmp_path: Path) -> None:
    updates = some_updates(3)
    kept = keep(tmp_path / "new" / "folder", updates[::-1])
    assert kept.sites == ("site-0", "site-1", "site-2") and len(kept) == 3
    for item in updates:
        assert kept.cases[item.site] == item.cases
        for spec in SCHEMA.tensors:
            values = item.tensors[spec.name].reshape(-1)
            assert torch.equal(kept.read(item.site, spec), values)
            assert torch.equal(kept.read(item.site, spec, 2, 5), values[2:5])
    kept.close()


def test_an_excluded_update_is_gone_and_the_others_stay(tmp_path: Path) -> None:
    updates = some_updates(3)
    kept = keep(tmp_path, updates)
    kept.exclude("site-0")
    assert kept.sites == ("site-1", "site-2") and set(kept.norms) == {"site-1", "site-2"}
    spec = SCHEMA.tensors[0]
    assert torch.equal(kept.read("site-2", spec), updates[2].tensors[spec.name].reshape(-1))
    kept.close()


def test_the_file_has_no_name_and_is_freed(tmp_path: Path) -> None:
    """The run folder goes to the study lead, who must not find a site's update in it."""
    before = open_files()
    kept = keep(tmp_path, some_updates(3))
    assert list(tmp_path.rglob("*")) == []
    assert len(open_files() - before) == 1
    kept.close()
    assert open_files() == before and len(kept) == 0
    kept.close()


def test_a_full_disk_refuses_that_update_and_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = some_updates(3)
    kept = keep(tmp_path, [first])
    original, written = os.pwrite, []

    def full(descriptor: int, content: Any, offset: int) -> int:
        written.append(offset)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return original(descriptor, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(FedfmsError) as caught:
            kept.keep(second)
    assert caught.value.ids == ("FMS-D011",) and "full" in str(caught.value)
    kept.keep(third)
    assert kept.sites == ("site-0", "site-2")
    for item in (first, third):
        for spec in SCHEMA.tensors:
            assert torch.equal(kept.read(item.site, spec), item.tensors[spec.name].reshape(-1))
    kept.close()


def test_a_write_that_the_system_cut_short_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, content, offset: pwrite(fd, content[:5], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:7]], offset))
    (item,) = some_updates(1)
    kept = keep(tmp_path, [item])
    for spec in SCHEMA.tensors:
        assert torch.equal(kept.read(item.site, spec), item.tensors[spec.name].reshape(-1))
    kept.close()


def test_a_schema_with_an_empty_tensor(tmp_path: Path) -> None:
    schema = Schema((TensorSpec("a", (0, 3)), TensorSpec("b", (2,))))
    tensors = {"a": torch.zeros(0, 3), "b": torch.ones(2)}
    item = make_update("site-1", tensors)
    kept = keep(tmp_path, [item], schema)
    assert kept.read(item.site, schema.tensors[0]).shape == (0,)
    assert torch.equal(kept.read(item.site, schema.tensors[1]), torch.ones(2))
    kept.close()


# Says by how many bytes the process grew from the first of 30 updates of 8 MB to the end of each combination.
MEMORY_PROGRAM = """
import json, resource, sys
from pathlib import Path
import torch
from fedfms.aggregation.kept_updates import KeptUpdates
from fedfms.aggregation.rules import combine
from fedfms.exchange.messages import Update
from fedfms.job.aggregation import Aggregation
from fedfms.sam.scope import Schema, TensorSpec

torch.set_num_threads(1)
folder, rules = Path(sys.argv[1]), sys.argv[2:]
schema = Schema((TensorSpec("decoder.weight", (2_000_000,)),))
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = KeptUpdates(schema, folder)
values = torch.rand(2_000_000)
for number in range(30):
    update = Update("", "", "", 0, f"site-{number:02}", {"organ": 1 + number}, {"decoder.weight": values + number})
    kept.keep(update)
    before = peak() if number == 0 else before
found = {}
for rule in rules:
    result = combine(kept, Aggregation(rule=rule))["decoder.weight"]
    found[rule] = [peak() - before, float((result - values).mean())]
json.dump(found, sys.stdout)
"""


def test_memory_does_not_grow_with_the_number_of_sites(tmp_path: Path) -> None:
    """All updates together are 240 MB."""
    rules = ["mean", "geometric_median", "coordinate_median"]
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(tmp_path), *rules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    for rule, (grown, moved) in json.loads(done.stdout).items():
        assert grown < 80_000_000, rule
        assert 15 < moved < 25, rule
