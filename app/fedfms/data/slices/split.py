"""The split into training, validation and test: deterministic, by patient, recorded as a digest.

Patients are ranked by SHA-256 of seed and identifier. Test patients are taken from the low end and validation patients
from the high end. So a new patient moves at most one other patient to another split per border, and the size of one
split does not change who is in the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from fedfms.data.description.site import SPLITS, SplitByPatient, SplitName, SplitRule
from fedfms.data.slices.discovery import CaseFiles
from fedfms.errors import NO_CASES, PATIENT_IN_TWO_SPLITS, SITE_INVALID, Problem
from fedfms.files import sha256_json


def split_patients(patients: Iterable[str], *, validation: float, test: float, seed: int) -> dict[str, SplitName]:
    """Draw the split.

    Args:
        patients: Identifiers; repetitions do not count.
        validation: Fraction of the patients, rounded to the nearest number of patients; above 0 it means at least one
            patient when there are two or more.
        test: Likewise; above 0 it means at least one patient when there are three or more.
        seed: Seed of the draw.

    Returns:
        Split of each patient. At least one patient is for training.
    """
    ranked = sorted(set(patients), key=lambda patient: _rank(patient, seed))
    count = len(ranked)
    wanted_validation = max(_rounded(count * validation), 1) if validation > 0 and count >= 2 else 0
    wanted_test = max(_rounded(count * test), 1) if test > 0 and count >= 3 else 0
    number_validation = min(wanted_validation, max(count - 1, 0))
    number_test = min(wanted_test, max(count - 1 - number_validation, 0))
    result: dict[str, SplitName] = {}
    for position, patient in enumerate(ranked):
        if position < number_test:
            result[patient] = "test"
        elif position >= count - number_validation:
            result[patient] = "validation"
        else:
            result[patient] = "train"
    return result


def assign_splits(cases: Sequence[CaseFiles]) -> tuple[list[SplitName], list[Problem]]:
    """Find the split of each case of one task.

    Datasets with the same split rule are drawn together, so that a patient who is in two of them gets one split.

    Returns:
        The split of each case, and problems: FMS-D007 for each patient in two splits, with two of the patient's
        files; FMS-D002 when ``validation_from_train`` is given although the column has validation rows.
    """
    problems: list[Problem] = []
    groups: list[tuple[SplitRule, list[int]]] = []
    for position, case in enumerate(cases):
        for rule, members in groups:
            if rule == case.dataset.split:
                members.append(position)
                break
        else:
            groups.append((case.dataset.split, [position]))
    splits: list[SplitName] = ["train"] * len(cases)
    for rule, members in groups:
        if isinstance(rule, SplitByPatient):
            drawn = split_patients(
                (cases[position].patient for position in members),
                validation=rule.validation,
                test=rule.test,
                seed=rule.seed,
            )
            for position in members:
                splits[position] = drawn[cases[position].patient]
            continue
        for position in members:
            splits[position] = cases[position].given_split or "train"
        if rule.validation_from_train is not None:
            if any(splits[position] == "validation" for position in members):
                where = f"dataset {cases[members[0]].dataset.name}: split.validation_from_train"
                problems.append(Problem(SITE_INVALID, where, "the column has validation rows already", "Remove it."))
                continue
            training = [position for position in members if splits[position] == "train"]
            drawn = split_patients(
                (cases[position].patient for position in training),
                validation=rule.validation_from_train,
                test=0.0,
                seed=rule.seed,
            )
            for position in training:
                splits[position] = drawn[cases[position].patient]
    return splits, problems + _patients_in_two_splits(cases, splits)


def split_problems(
    splits: Sequence[SplitName], needed: Sequence[SplitName], where: str, left_out: int = 0
) -> list[Problem]:
    """FMS-D008 for each needed split without a case, or once when no case is left at all.

    Args:
        splits: Split of each case that can be used.
        needed: Splits that must have a case.
        where: Named in the problems.
        left_out: Number of cases that ``strict: false`` leaves out.
    """
    counts = ", ".join(f"{splits.count(name)} {name}" for name in SPLITS)
    counts += f"; {left_out} left out because of bad files" if left_out else ""
    if left_out and not splits:
        return [Problem(NO_CASES, where, f"no case is left (cases: {counts})")]
    return [Problem(NO_CASES, where, f"no case for {name} (cases: {counts})") for name in needed if name not in splits]


def split_digest(entries: Iterable[tuple[str, str, str]]) -> str:
    """SHA-256 over (case, split, content mark) of every case, independent of their order.

    The content mark is a digest over stored image bytes. It acts as a salt: without it, somebody who receives the
    digest of a small site could try patient numbers until the digest fits.
    """
    return sha256_json(sorted(list(entry) for entry in entries))


def _patients_in_two_splits(cases: Sequence[CaseFiles], splits: Sequence[SplitName]) -> list[Problem]:
    first: dict[str, int] = {}
    reported: set[str] = set()
    problems = []
    for position, case in enumerate(cases):
        earlier = first.setdefault(case.patient, position)
        if splits[earlier] != splits[position] and case.patient not in reported:
            reported.add(case.patient)
            detail = f"{splits[position]}, but the same patient's {cases[earlier].image} is {splits[earlier]}"
            problems.append(Problem(PATIENT_IN_TWO_SPLITS, str(case.image), detail))
    return problems


def _rank(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{patient}".encode()).hexdigest()


def _rounded(value: float) -> int:
    # round() takes halves to the even number: 2.5 and 3.5 would give 2 and 4.
    return int(value + 0.5)
