"""The policy: every key is checked, every objection is named, figures are withheld as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfms.errors import FedfmsError
from fedfms.exchange.replies import FIGURES, ReadyReport, Slices, ValidateReport
from fedfms.job.training import TrainingJob
from fedfms.site.policy import SIMULATOR_POLICY, SitePolicy, load_policy, site_policy
from tests.flare.builders import policy_content, train_report, write_policy


def policy(**changes: Any) -> SitePolicy:
    return SitePolicy.model_validate(policy_content(**changes))


@pytest.fixture
def job(job_content: dict[str, Any]) -> TrainingJob:
    return TrainingJob.model_validate(job_content)


def test_a_policy_is_read(kit: Path) -> None:
    assert load_policy(kit / "local" / "policy.yaml").max_rounds == 10


WRONG: dict[str, Any] = {
    "scopes": ["everything"],
    "backbones": ["abc"],
    "update_norm_limit": 0,
    "min_training_cases": True,
    "max_rounds": 1.5,
    "max_hours": "long",
    "colour": "blue",
}


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    path = write_policy(tmp_path, **WRONG, metrics={"allowed": ["accuracy"]}, review={"rule": "maybe"})
    with pytest.raises(FedfmsError) as caught:
        load_policy(path)
    assert caught.value.ids == ("FMS-S001",)
    for key in (*WRONG, "metrics.allowed.0", "metrics.min_slices", "review.rule", "review.hold_minutes"):
        assert f"{path}: {key}" in str(caught.value), key


@pytest.mark.parametrize("key", sorted(policy_content()))
def test_no_key_has_a_default(key: str, tmp_path: Path) -> None:
    path = write_policy(tmp_path)
    path.write_text(yaml.safe_dump({name: value for name, value in policy_content().items() if name != key}))
    with pytest.raises(FedfmsError, match=f"FMS-S001 .*{key}: this key is missing"):
        load_policy(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scopes", []),
        ("scopes", ["decoder", "decoder"]),
        ("backbones", []),
        ("backbones", "all"),
        ("metrics", {"allowed": ["dice", "dice"], "min_slices": 1}),
        ("metrics", {"allowed": [], "min_slices": 0}),
        ("review", {"rule": "required", "hold_minutes": 120, "valid_days": 1}),
        ("review", {"rule": "required", "hold_minutes": 1, "valid_days": 0}),
        ("max_hours", float("inf")),
    ],
)
def test_values_that_make_no_sense_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(FedfmsError, match=f"FMS-S001 .*{key}"):
        load_policy(write_policy(tmp_path, **{key: value}))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = write_policy(tmp_path)
    path.write_text(path.read_text() + "max_rounds: 100000\n")
    with pytest.raises(FedfmsError, match="FMS-S001 .*appears twice"):
        load_policy(path)


def test_without_a_file_a_real_site_has_no_policy_and_the_simulator_its_own(tmp_path: Path) -> None:
    with pytest.raises(FedfmsError) as caught:
        site_policy(tmp_path)
    assert caught.value.ids == ("FMS-S003",) and "Write local/policy.yaml" in str(caught.value)
    assert site_policy(tmp_path, simulated=True) == SIMULATOR_POLICY
    write_policy(tmp_path)
    assert site_policy(tmp_path, simulated=True).max_rounds == 10, "a file counts in the simulator too"


def test_a_link_to_nowhere_is_no_missing_file(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "policy.yaml").symlink_to(tmp_path / "gone.yaml")
    with pytest.raises(FedfmsError, match="FMS-S003"):
        site_policy(tmp_path, simulated=True)


def test_every_objection_is_named_with_both_values(job: TrainingJob) -> None:
    asks = job.model_copy(update={"rounds": 30, "local_work": type(job.local_work)(minutes=60)})
    strict = policy(scopes=["decoder"], backbones=["a" * 64], max_rounds=2, max_hours=24)
    found = {problem.where: problem.detail for problem in strict.objections(asks)}
    assert found == {
        "scope": "found adapters+decoder, the site allows decoder",
        "backbone_sha256": f"found {job.backbone_sha256} (vit_test), the site allows only {'a' * 64}",
        "rounds": "found 30, the site allows at most 2",
        "local_work.minutes": "found 30 hours over all rounds, the site allows at most 24",
    }
    assert {problem.kind.id for problem in strict.objections(asks)} == {"FMS-S002"}
    assert policy().objections(job) == [] and policy(backbones="any").objections(job) == []


@pytest.mark.parametrize(
    ("cases", "too_few"),
    [
        ({"organ": 3, "lesion": 3}, []),
        ({"organ": 3, "lesion": 0}, []),
        ({"organ": 9, "lesion": 2}, ["lesion"]),
        ({"organ": 9, "lesion": 1}, ["lesion"]),
        ({"organ": 0, "lesion": 0}, ["organ", "lesion"]),
    ],
)
def test_each_annotated_structure_needs_the_least_number_of_cases(cases: dict[str, int], too_few: list[str]) -> None:
    assert policy(min_training_cases=3).too_few(cases) == too_few


def test_a_figure_outside_the_list_becomes_null_in_every_report() -> None:
    nothing = policy(metrics={"allowed": [], "min_slices": 1})
    report, withheld = nothing.withhold(train_report())
    values = report.model_dump()
    assert all(values[name] is None for name in values if name in FIGURES)
    assert values["local"]["organ"] == {"dice": None, "iou": None, "n": None}
    # What had no value is not called withheld.
    assert "received.organ.n" in withheld and "received.lesion.dice" not in withheld
    ready = ReadyReport(
        cases={"organ": 5}, cases_left_out=1, slices=Slices(train=1, validation=2), fingerprint_sha256="f" * 64
    )
    blank, names = nothing.withhold(ready)
    assert blank.model_dump() == {
        "cases": {"organ": 5},
        "cases_left_out": None,
        "slices": None,
        "fingerprint_sha256": None,
    }
    assert names == ("cases_left_out", "slices", "fingerprint_sha256")


@pytest.mark.parametrize(
    ("slices", "least", "hidden"),
    [(0, 1, False), (0, 9, False), (1, 1, False), (1, 2, True), (8, 9, True), (9, 9, False), (None, 9, False)],
)
def test_scores_on_one_slice_up_to_the_least_number_become_null(slices: int | None, least: int, hidden: bool) -> None:
    """That no slice shows a structure tells nothing about a patient; what one slice gave tells about one."""
    value = 0.5 if slices else None
    score = {"dice": value, "iou": value, "n": slices}
    report = train_report(received={"organ": score}, local={"organ": score})
    kept, withheld = policy(metrics={"allowed": list(FIGURES), "min_slices": least}).withhold(report)
    assert kept.model_dump()["received"]["organ"] == (dict.fromkeys(score) if hidden else score)
    assert ("received.organ.n" in withheld) == ("local.organ.n" in withheld) == hidden


@pytest.mark.parametrize(
    ("allowed", "left"),
    [
        (["dice", "iou"], {"dice", "iou", "n"}),
        (["dice"], {"dice", "n"}),
        (["iou"], {"iou", "n"}),
        (["loss"], set()),
    ],
)
def test_the_number_of_slices_goes_with_the_scores_it_supports(allowed: list[str], left: set[str]) -> None:
    kept, _ = policy(metrics={"allowed": allowed, "min_slices": 1}).withhold(train_report())
    score = kept.model_dump()["received"]["organ"]
    assert {name for name, value in score.items() if value is not None} == left


@pytest.mark.parametrize(("least", "hidden"), [(7, False), (8, True)])
def test_scores_on_few_slices_become_null(least: int, hidden: bool) -> None:
    report, withheld = policy(metrics={"allowed": list(FIGURES), "min_slices": least}).withhold(train_report())
    assert isinstance(report, type(train_report()))
    score = report.received["organ"]
    assert ((score.dice, score.iou, score.n) == (None, None, None)) == hidden == bool(withheld)
    assert report.received["lesion"].n == 0, "that there is none is told"


def test_withholding_twice_changes_nothing_more() -> None:
    some = policy(metrics={"allowed": ["dice"], "min_slices": 3})
    once, withheld = some.withhold(train_report())
    assert some.withhold(once) == (once, ()) and withheld
    kept = ValidateReport(received=train_report().received, seconds=1, peak_memory_bytes=1)
    assert SIMULATOR_POLICY.withhold(kept) == (kept, ())


def test_a_job_of_few_slices_or_a_wider_bound_is_objected_to(job: TrainingJob) -> None:
    one = job.model_copy(update={"local_work": type(job.local_work)(steps=1), "batch_size": 1})
    found = {problem.where: problem.detail for problem in policy(min_slices_per_update=2).objections(one)}
    assert found == {
        "local_work.steps": "found 1 steps of 1 slices for an update, the site allows no fewer than 2 slices"
    }
    assert policy(min_slices_per_update=1).objections(one) == []
    wide = policy(update_norm_limit=job.update_norm_limit / 2).objections(job)
    assert [problem.where for problem in wide] == ["update_norm_limit"]


@pytest.mark.parametrize(
    ("key", "least_that_is_enough", "too_strict"),
    [
        ("max_rounds", 30, 29),
        ("update_norm_limit", 100.0, 99.9),
        ("min_slices_per_update", 8, 9),
        ("max_hours", 30, 29.9),
    ],
)
def test_what_the_policy_allows_exactly_is_no_objection(
    key: str, least_that_is_enough: float, too_strict: float, job: TrainingJob
) -> None:
    work = {"minutes": 60} if key == "max_hours" else {"steps": 4}
    asks = job.model_copy(
        update={
            "rounds": 30,
            "batch_size": 2,
            "update_norm_limit": 100.0,
            "local_work": type(job.local_work)(**work),
        }
    )
    generous = {"max_rounds": 100, "max_hours": 100, "update_norm_limit": 1000, "min_slices_per_update": 1}
    assert policy(**{**generous, key: least_that_is_enough}).objections(asks) == []
    (objection,) = policy(**{**generous, key: too_strict}).objections(asks)
    assert objection.where.split(".")[0] in (key, "rounds", "local_work")
