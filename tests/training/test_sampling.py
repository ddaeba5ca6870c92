"""Which slices take part in training."""

from __future__ import annotations

import pytest

from fedfms.data.slices.dataset import Case, SliceReference
from fedfms.errors import FedfmsError
from fedfms.training.sampling import training_slices


class Slices:
    """A hundred training slices in each case, every second one empty."""

    def __init__(self, cases: str = "abcd") -> None:
        self._cases = [Case(f"set/{name}", name, "train", "set", frozenset({"organ"})) for name in cases]

    def slices(self, split: str) -> list[SliceReference]:
        assert split == "train"
        return [SliceReference(case, index) for case in self._cases for index in range(100)]

    def is_empty(self, reference: SliceReference) -> bool:
        return reference.index % 2 == 0


def drawn(share: float, seed: int = 0, cases: str = "abcd") -> list[SliceReference]:
    return training_slices(Slices(cases), share, seed)  # type: ignore[arg-type]


def test_all_or_none_of_the_empty_slices() -> None:
    everything = Slices().slices("train")
    assert drawn(1.0) == everything
    assert drawn(0.0) == [item for item in everything if item.index % 2]


def test_a_share_is_drawn_by_seed_and_slice_alone() -> None:
    some = drawn(0.25)
    assert [item for item in some if item.index % 2] == drawn(0.0), "what shows a structure always stays"
    assert 30 < len(some) - 200 < 70
    assert some == drawn(0.25) != drawn(0.25, seed=1)
    assert set(some) < set(drawn(0.5)), "a larger share keeps what a smaller one keeps"
    assert drawn(0.25, cases="bd") == [item for item in some if item.case.patient in "bd"]
    per_case = [{item.index for item in some if item.case.patient == name} for name in "abcd"]
    assert per_case[0] != per_case[1], "each case has a draw of its own"


def test_no_slice_left_is_d008(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slices, "is_empty", lambda self, reference: True)
    with pytest.raises(FedfmsError, match="all 400 training slices are empty, and 'empty_slices: 0'") as caught:
        drawn(0.0)
    assert caught.value.ids == ("FMS-D008",)
