from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedfms.data.slices.split import split_digest, split_patients

names = st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=1, max_size=60)


@given(names, st.floats(0, 0.6), st.floats(0, 0.39), st.integers(0, 5))
def test_sizes_follow_the_fractions_and_somebody_trains(
    patients: set[str], validation: float, test: float, seed: int
) -> None:
    splits = split_patients(patients, validation=validation, test=test, seed=seed)
    counts = {name: list(splits.values()).count(name) for name in ("train", "validation", "test")}
    assert set(splits) == patients
    assert counts["train"] >= 1
    if len(patients) >= 2 and validation > 0:
        assert counts["validation"] >= 1
    if len(patients) >= 3 and validation > 0 and test > 0:
        assert counts["test"] >= 1 or counts["validation"] + 1 == len(patients)
    if len(patients) >= 10:
        assert abs(counts["validation"] - len(patients) * validation) <= 1
        assert abs(counts["test"] - len(patients) * test) <= 1


@given(names, st.integers(0, 5))
def test_the_order_and_repetition_of_patients_do_not_matter(patients: set[str], seed: int) -> None:
    listed = sorted(patients)
    one = split_patients(listed, validation=0.3, test=0.2, seed=seed)
    assert one == split_patients([*listed[::-1], *listed], validation=0.3, test=0.2, seed=seed)


def test_reference_values() -> None:
    # The draw is part of what a study reports: it must not change between versions.
    splits = split_patients([f"p{number}" for number in range(10)], validation=0.2, test=0.1, seed=0)
    assert sorted(name for name, split in splits.items() if split == "validation") == ["p4", "p6"]
    assert sorted(name for name, split in splits.items() if split == "test") == ["p9"]


def test_another_seed_gives_another_draw() -> None:
    patients = [f"p{number}" for number in range(40)]
    splits = [split_patients(patients, validation=0.2, test=0, seed=seed) for seed in range(5)]
    draws = {tuple(split[patient] for patient in patients) for split in splits}
    assert len(draws) == 5


def test_a_new_patient_moves_at_most_one_other_per_border() -> None:
    patients = [f"p{number}" for number in range(30)]
    before = split_patients(patients, validation=0.2, test=0.2, seed=1)
    for new in ("q1", "q2", "q3", "q4"):
        after = split_patients([*patients, new], validation=0.2, test=0.2, seed=1)
        assert sum(before[name] != after[name] for name in patients) <= 2


def test_a_single_patient_trains() -> None:
    assert split_patients(["p"], validation=0.5, test=0.4, seed=0) == {"p": "train"}


def test_digest_depends_on_split_and_content_but_not_on_order() -> None:
    entries = [("a", "train", "1"), ("b", "validation", "2")]
    assert split_digest(entries) == split_digest(entries[::-1])
    assert split_digest(entries) != split_digest([("a", "validation", "1"), ("b", "train", "2")])
    assert split_digest(entries) != split_digest([("a", "train", "1"), ("b", "validation", "3")])
