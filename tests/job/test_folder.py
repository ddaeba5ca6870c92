"""``fedfms job new``: a job folder from another one, complete or not at all; and the folders the project ships."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from fedfms.errors import FedfmsError
from fedfms.job.folder import TRAINING_FILE, job_keys, new_job
from fedfms.job.training import TrainingJob, load_job
from fedfms.preprocessing import INTENSITY_RULES, Intensity, PercentileIntensity
from fedfms.sam.backbones import published_sha256
from fedfms.sam.model import schema_of
from tests.command import Command
from tests.job.test_training import leaves

JOBS = Path(__file__).parents[2] / "jobs"
SOURCE = JOBS / "fedmsa"


def made(target: Path, *settings: str) -> dict[str, Any]:
    """What ``training.yaml`` of a new job says."""
    new_job(SOURCE, settings, target)
    values: dict[str, Any] = yaml.safe_load((target / TRAINING_FILE).read_text())
    return values


def refused(target: Path, *settings: str, source: Path = SOURCE) -> FedfmsError:
    """The error of a job that cannot be made; nothing may be left behind."""
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(FedfmsError) as caught:
        new_job(source, settings, target)
    assert sorted(target.parent.rglob("*")) == before
    return caught.value


def test_new_job_is_a_whole_folder_under_its_own_name(tmp_path: Path) -> None:
    job = new_job(SOURCE, ["rounds=7", "learning_rate=1e-3"], tmp_path / "mine")
    assert (job.rounds, job.learning_rate) == (7, 1e-3)
    assert load_job(tmp_path / "mine" / TRAINING_FILE) == job
    files = {path.relative_to(SOURCE) for path in SOURCE.rglob("*")}
    assert {path.relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("*")} == files
    for path in files - {TRAINING_FILE, Path("meta.json")}:
        assert (SOURCE / path).is_dir() or (tmp_path / "mine" / path).read_bytes() == (SOURCE / path).read_bytes()
    meta = json.loads((tmp_path / "mine" / "meta.json").read_text())
    assert meta == {**json.loads((SOURCE / "meta.json").read_text()), "name": "mine"}
    assert next(iter(meta)) == "name", "FLARE's job submit cuts a file that begins with a nested key"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_without_settings_the_job_is_the_same(tmp_path: Path) -> None:
    assert new_job(SOURCE, [], tmp_path / "copy").sha256 == load_job(SOURCE / TRAINING_FILE).sha256


def test_comments_and_all_other_lines_stay(tmp_path: Path) -> None:
    new_job(SOURCE, ["rounds=5", "seed=3"], tmp_path / "mine")
    before = (SOURCE / TRAINING_FILE).read_text().splitlines()
    after = (tmp_path / "mine" / TRAINING_FILE).read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old.split() != new.split()]
    assert changed == [("rounds: 3", "rounds: 5"), ("seed: 0", "seed: 3")]


def test_keys_are_all_of_them() -> None:
    values = yaml.safe_load((SOURCE / TRAINING_FILE).read_text())
    assert set(leaves(values)) < set(job_keys())
    assert {"local_work.epochs", "local_work.minutes", "preprocessing.intensity.width", "adapter.blocks"} < set(
        job_keys()
    )
    assert {key.split(".")[0] for key in job_keys()} == set(TrainingJob.model_fields)
    assert len(job_keys()) == len(set(job_keys()))


def test_unknown_keys_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    error = refused(tmp_path / "mine", "lr=1", "rounds=5", "preprocessing.size=128", "local_work.hours=1", "seed")
    assert error.ids == ("FMS-J002",)
    assert [item.where for item in error.problems] == ["lr", "preprocessing.size", "local_work.hours", "seed"]
    for item in error.problems[:3]:
        assert item.detail == "unknown key"
        assert item.remedy is not None and all(key in item.remedy for key in job_keys())
    assert "KEY=VALUE" in error.problems[3].detail


def test_unknown_keys_and_wrong_values_come_in_one_message(tmp_path: Path) -> None:
    error = refused(tmp_path / "new", "colour=red", "rounds=x", "seed")
    places = [problem.where for problem in error.problems]
    assert places[:2] == ["colour", "seed"] and places[2].endswith("training.yaml: rounds")


@pytest.mark.parametrize("text", ["a,b", "a, b", "[a, b]"])
def test_structures_as_a_list(tmp_path: Path, text: str) -> None:
    assert made(tmp_path / "mine", f"structures={text}")["structures"] == ["a", "b"]


def test_one_structure(tmp_path: Path) -> None:
    assert made(tmp_path / "mine", "structures=tumour")["structures"] == ["tumour"]


@pytest.mark.parametrize("kind", ["epochs", "minutes", "steps"])
def test_local_work_is_replaced(tmp_path: Path, kind: str) -> None:
    assert made(tmp_path / "mine", f"local_work.{kind}=2")["local_work"] == {kind: 2}


def test_another_intensity_rule_drops_the_keys_of_the_old_one(tmp_path: Path) -> None:
    rule = "preprocessing.intensity."
    values = made(tmp_path / "photographs", f"{rule}rule=range")
    assert values["preprocessing"]["intensity"] == {"rule": "range"}
    ct = [f"{rule}rule=window", f"{rule}center=40", f"{rule}width=400"]
    for number, settings in enumerate(permutations(ct)):
        values = made(tmp_path / str(number), *settings)
        assert values["preprocessing"]["intensity"] == {"rule": "window", "center": 40, "width": 400}
    new_job(tmp_path / "photographs", [f"{rule}rule=percentile", f"{rule}low=1", f"{rule}high=99"], tmp_path / "mr")
    assert load_job(tmp_path / "mr" / TRAINING_FILE).preprocessing.intensity == PercentileIntensity(
        rule="percentile", low=1, high=99
    )


def test_the_intensity_rules_are_all_of_them() -> None:
    kinds = set(get_args(get_args(Intensity)[0]))
    assert set(INTENSITY_RULES.values()) == kinds
    assert all(get_args(kind.model_fields["rule"].annotation) == (name,) for name, kind in INTENSITY_RULES.items())


def test_the_command_says_for_which_images_the_grey_values_are_scaled(fedfms: Command, tmp_path: Path) -> None:
    said = fedfms("job", "new", "--from", SOURCE, "--out", tmp_path / "mine")
    assert said.code == 0 and "grey values: percentile, low 0.5, high 99.5. Choose by modality" in said.out
    assert "window (center, width) for CT, range for photographs" in said.out
    photographs = ("--set", "preprocessing.intensity.rule=range", "--out", tmp_path / "photographs")
    assert "grey values: range. Choose" in fedfms("job", "new", "--from", SOURCE, *photographs).out


def test_another_backbone_brings_its_digest(tmp_path: Path) -> None:
    values = made(tmp_path / "mine", "backbone=vit_b", "preprocessing.input_size=512")
    assert (values["backbone"], values["backbone_sha256"]) == ("vit_b", published_sha256("vit_b"))
    own = made(tmp_path / "own", "backbone=vit_b", f"backbone_sha256={'ab' * 32}")
    assert own["backbone_sha256"] == "ab" * 32


def test_a_whole_mapping_and_a_key_in_it(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", "preprocessing.intensity={rule: range}")
    assert whole["preprocessing"]["intensity"] == {"rule": "range"}
    assert whole["preprocessing"]["slice_axis"] == "axial"
    window = "preprocessing.intensity={rule: window, center: 40, width: 400}"
    assert made(tmp_path / "window", window, "preprocessing.intensity.width=350")["preprocessing"]["intensity"] == {
        "rule": "window", "center": 40, "width": 350,
    }  # fmt: skip
    assert made(tmp_path / "nested", "adapter.blocks=4")["adapter"]["blocks"] == 4


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        (["rounds=none"], ["rounds"]),
        (["rounds=0", "structures=A,b", "warmup=.nan"], ["structures.0", "rounds", "warmup"]),
        (["backbone=vit_x"], ["backbone"]),
        (["local_work={epochs: 1, steps: 2}"], ["local_work"]),
        (["local_work=3"], ["local_work"]),
        (["preprocessing.intensity.rule=window"], ["intensity.center", "intensity.width"]),
        (["preprocessing.intensity.rule=window", "preprocessing.intensity.width=9"], ["intensity.center"]),
        (["preprocessing.intensity.rule=range", "preprocessing.intensity.low=1"], ["intensity.low"]),
        (["preprocessing.intensity={rule: range, low: 1}"], ["intensity.low"]),
        (["preprocessing.intensity.center=40"], ["intensity.center"]),
        (["preprocessing.intensity.rule=percent"], ["preprocessing.intensity"]),
    ],
)
def test_wrong_values_leave_nothing_behind(tmp_path: Path, settings: list[str], places: list[str]) -> None:
    error = refused(tmp_path / "mine", *settings)
    assert error.ids == ("FMS-J002",)
    found = [item.where for item in error.problems]
    assert len(found) == len(places)
    assert all(text.endswith(where) for text, where in zip(found, places, strict=True))
    assert all(text.startswith(f"{tmp_path / 'mine' / TRAINING_FILE}: ") for text in found), "a file that is not there"


@pytest.mark.parametrize("setting", ["rounds=[1", "structures={", "seed=:"])
def test_value_that_is_not_yaml(tmp_path: Path, setting: str) -> None:
    assert refused(tmp_path / "mine", setting).problems[0].where.endswith(setting.split("=")[0])


def test_key_inside_what_was_set_to_a_number(tmp_path: Path) -> None:
    error = refused(tmp_path / "mine", "local_work=5", "local_work.steps=3")
    assert error.ids == ("FMS-J002",)
    assert error.problems[0].where == "local_work.steps"


def test_target_that_exists(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    error = refused(tmp_path / "mine")
    assert error.ids == ("FMS-J004",) and "exists already" in str(error)


def test_target_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    error = refused(tmp_path / "file" / "mine")
    assert error.ids == ("FMS-D011",)


@pytest.mark.parametrize("missing", ["meta.json", str(TRAINING_FILE), "everything"])
def test_source_that_is_not_a_job_folder(tmp_path: Path, missing: str) -> None:
    source = tmp_path / "source"
    new_job(SOURCE, [], source)
    if missing == "everything":
        source = tmp_path / "nowhere"
    else:
        (source / missing).unlink()
    error = refused(tmp_path / "mine", source=source)
    assert error.ids == ("FMS-J004",) and "meta.json" in str(error)


@pytest.mark.parametrize("text", ["{", "[]", '{"min_clients": 2, "min_clients": 1}'], ids=["torn", "list", "twice"])
def test_source_with_a_broken_meta_file(tmp_path: Path, text: str) -> None:
    new_job(SOURCE, [], tmp_path / "source")
    (tmp_path / "source" / "meta.json").write_text(text)
    error = refused(tmp_path / "mine", source=tmp_path / "source")
    assert error.ids == ("FMS-J004",) and "meta.json" in str(error)


def test_invalid_source_is_refused(tmp_path: Path) -> None:
    new_job(SOURCE, [], tmp_path / "source")
    path = tmp_path / "source" / TRAINING_FILE
    path.write_text(path.read_text().replace("rounds: 3", "rounds: 3\nmomentum: 1"))
    assert refused(tmp_path / "mine", source=tmp_path / "source").ids == ("FMS-J002",)


@pytest.mark.parametrize("name", ["fedmsa", "fedsam"])
def test_shipped_job_is_valid_and_brings_no_code(name: str) -> None:
    folder = JOBS / name
    job = load_job(folder / TRAINING_FILE)
    assert job.backbone_sha256 == published_sha256(job.backbone)
    assert schema_of(job.model).parameters > 10**6
    assert json.loads((folder / "meta.json").read_text())["name"] == name
    assert not list(folder.rglob("custom")) and not list(folder.rglob("*.py"))


def test_shipped_jobs_differ_in_title_scope_and_learning_rate_only() -> None:
    """Line by line: their comments must not drift apart either. All of SAM wants smaller steps than fresh adapters."""
    one, other = ((JOBS / name / TRAINING_FILE).read_text().splitlines() for name in ("fedmsa", "fedsam"))
    differing = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
    for line, _ in differing:
        assert line.startswith(("# ", "scope:", "learning_rate:"))
    for key in ("scope:", "learning_rate:"):
        assert sum(line.startswith(key) for line, _ in differing) == 1
    files = [{path.relative_to(JOBS / name) for path in (JOBS / name).rglob("*")} for name in ("fedmsa", "fedsam")]
    assert files[0] == files[1]
    for path in files[0] - {TRAINING_FILE, Path("meta.json")}:
        assert (JOBS / "fedmsa" / path).is_dir() or (JOBS / "fedmsa" / path).read_bytes() == (
            JOBS / "fedsam" / path
        ).read_bytes()
