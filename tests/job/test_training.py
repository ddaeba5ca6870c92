"""``training.yaml``: every fault is named with its key, all of them at once, and the digest is of the content."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import nn

from fedfms.configuration import StructureName
from fedfms.errors import FedfmsError
from fedfms.files import sha256_json
from fedfms.job.training import TrainingJob, load_job, parse_job
from tests.generators import write_yaml
from tests.training.conftest import make_job


def content() -> dict[str, Any]:
    values: dict[str, Any] = make_job().model_dump(mode="json", exclude_none=True)
    values["preprocessing"]["intensity"] = {"rule": "percentile", "low": 0.5, "high": 99.5}
    return values


def with_value(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Set a nested value in place; a missing one is made."""
    *path, leaf = key.split(".")
    place = values
    for name in path:
        place = place[name]
    place[leaf] = value
    return values


def problems_of(values: dict[str, Any]) -> dict[str, str]:
    """Key to detail of each problem."""
    with pytest.raises(FedfmsError) as caught:
        parse_job(values, Path("training.yaml"))
    assert caught.value.ids == ("FMS-J002",)
    found = {item.where.removeprefix("training.yaml: "): item.detail for item in caught.value.problems}
    assert len(found) == len(caught.value.problems), "two problems for one key"
    return found


def test_valid_content_is_taken(tmp_path: Path) -> None:
    job = load_job(write_yaml(tmp_path / "training.yaml", content()))
    assert job.structures == ("organ", "lesion")
    assert job.model.input_size == 64 and job.model.structures == job.structures


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("task", "Abdomen CT", "at most 64 lower-case letters"),
        ("structures", [], "name 1 to 64 structures"),
        ("structures", [f"s{i}" for i in range(65)], "name 1 to 64 structures"),
        ("structures", ["organ", "organ"], "must not repeat"),
        ("structures", "organ", "valid tuple"),
        ("missing_structure", "ignore", "'error' or 'mask'"),
        ("backbone", "vit_x", "'vit_t'"),
        ("backbone_sha256", "abc", "64 digits of 0-9"),
        ("scope", "everything", "'adapters+decoder'"),
        ("adapter.blocks", 0, "'all' (found 0) or Input should be greater than or equal to 1"),
        ("adapter.blocks", True, "valid integer"),
        ("adapter.ratio", 1.5, "less than or equal to 1"),
        ("adapter.scale", 0, "greater than 0"),
        ("preprocessing.input_size", 100, "multiple of 16"),
        ("preprocessing.input_size", 16, "greater than or equal to 32"),
        ("preprocessing.slice_axis", "oblique", "'axial'"),
        ("preprocessing.channels", "two", "'same' or 'neighbours'"),
        ("preprocessing.intensity", {"rule": "gamma"}, "'percentile'"),
        ("preprocessing.intensity", {}, "rule"),
        ("preprocessing.intensity", {"rule": "percentile", "low": 60, "high": 40}, "low must be smaller"),
        ("preprocessing.intensity.low", "a", "valid number"),
        ("empty_slices", 1.5, "less than or equal to 1"),
        ("empty_slices", -0.1, "greater than or equal to 0"),
        ("empty_slices", True, "truth value"),
        ("rounds", 0, "greater than or equal to 1"),
        ("rounds", "three", "valid integer"),
        ("rounds", 2.5, "valid integer"),
        ("rounds", True, "valid integer"),
        ("min_clients", 0, "greater than or equal to 1"),
        ("straggler_minutes", -1, "greater than or equal to 0"),
        ("local_work", {"steps": 3, "epochs": 1}, "exactly one of epochs, steps, minutes; found ['epochs', 'steps']"),
        ("local_work", {}, "exactly one of epochs, steps, minutes; found none"),
        ("local_work.steps", 0, "greater than or equal to 1"),
        ("batch_size", 0, "greater than or equal to 1"),
        ("learning_rate", math.nan, "finite"),
        ("learning_rate", math.inf, "finite"),
        ("learning_rate", 0, "greater than 0"),
        ("learning_rate", None, "valid number"),
        ("learning_rate", True, "truth value"),
        ("weight_decay", -0.1, "greater than or equal to 0"),
        ("warmup", 1, "less than 1"),
        ("gradient_clip", math.nan, "finite"),
        ("server_momentum", 1, "less than 1"),
        ("aggregation", "mean", "dictionary"),
        ("aggregation.rule", "average", "'mean'"),
        ("aggregation.max_share", 0, "greater than or equal to 0.01"),
        ("aggregation.max_share", 1.1, "less than or equal to 1"),
        ("aggregation.max_share", None, "valid number"),
        ("aggregation.norm_factor", 1, "greater than 1"),
        ("aggregation.norm_factor", True, "truth value"),
        ("aggregation.trim", 0, "greater than or equal to 0.01"),
        ("aggregation.trim", 0.5, "less than or equal to 0.49"),
        ("aggregation", {"rule": "trimmed_mean"}, "write for example trim: 0.25"),
        ("aggregation", {"rule": "geometric_median", "trim": 0.2}, "remove trim, or write rule: trimmed_mean"),
        ("aggregation", {"trim": 0.2}, "rule mean cuts nothing"),
        ("augmentation.variants", 0, "greater than or equal to 1"),
        ("update_norm_limit", math.inf, "finite"),
        ("precision", "fp16", "'auto'"),
        ("seed", -1, "greater than or equal to 0"),
    ],
)
def test_each_wrong_value_is_named_with_its_key(key: str, value: Any, words: str) -> None:
    found = problems_of(with_value(content(), key, value))
    assert list(found) == [key]
    assert words in found[key]
    assert "found" in found[key]


@pytest.mark.parametrize("names", [["Organ"], ["organ 1"], ["1organ"], [""], ["a" * 41], ["../x"], ["a.b"]])
def test_bad_structure_names_are_named_by_position(names: list[str]) -> None:
    assert list(problems_of({**content(), "structures": ["ok", *names]})) == ["structures.1"]


@pytest.mark.parametrize(
    "place", ["", "preprocessing.", "preprocessing.intensity.", "adapter.", "local_work.", "aggregation."]
)
def test_unknown_key_at_every_level(place: str) -> None:
    found = problems_of(with_value(content(), f"{place}momentum", 0.9))
    assert found == {f"{place}momentum": "unknown key"}


def test_every_missing_key_is_named() -> None:
    found = problems_of({})
    assert set(found) == set(TrainingJob.model_fields) - {"adapter", "empty_slices", "aggregation"}
    assert set(found.values()) == {"this key is missing"}
    values = content()
    del values["preprocessing"]["intensity"]["high"], values["preprocessing"]["slice_axis"]
    assert set(problems_of(values)) == {"preprocessing.intensity.high", "preprocessing.slice_axis"}


def test_all_faults_come_in_one_message(tmp_path: Path) -> None:
    values = content()
    del values["seed"]
    values |= {"structures": ["organ", "organ"], "rounds": "many", "learning_rate": math.nan, "momentum": 0.9}
    values["local_work"] = {"steps": 3, "minutes": 1}
    values["preprocessing"]["intensity"]["high"] = 101
    path = write_yaml(tmp_path / "training.yaml", values)
    with pytest.raises(FedfmsError) as caught:
        load_job(path)
    places = [problem.where for problem in caught.value.problems]
    keys = ["structures", "preprocessing.intensity.high", "rounds", "local_work", "learning_rate", "seed", "momentum"]
    assert sorted(places) == sorted(f"{path}: {key}" for key in keys)
    lines = str(caught.value).splitlines()
    assert len(lines) == 7 and all("-> Correct the keys named; jobs/README.md" in line for line in lines)


def test_what_the_backbone_does_not_allow_is_named_with_the_rest(tmp_path: Path) -> None:
    values = {**content(), "backbone": "vit_t", "scope": "adapters+decoder", "rounds": 0}
    values["adapter"] = {"blocks": 11}
    values["preprocessing"]["input_size"] = 512
    path = write_yaml(tmp_path / "training.yaml", values)
    with pytest.raises(FedfmsError) as caught:
        load_job(path)
    found = {(problem.kind.id, problem.where.removeprefix(f"{path}: ")) for problem in caught.value.problems}
    assert found == {
        ("FMS-J002", "rounds"),
        ("FMS-M005", "preprocessing.input_size"),
        ("FMS-M005", "adapter.blocks"),
    }
    with pytest.raises(FedfmsError) as caught:
        load_job(write_yaml(path, {**values, "rounds": 1, "scope": "full"}))
    assert caught.value.ids == ("FMS-M005",)


@pytest.mark.parametrize("text", ["rounds: [1", "- rounds\n", "", "rounds: 1\n  x: 2\n", "rounds: 1\nrounds: 2\n"])
def test_file_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "training.yaml"
    path.write_text(text)
    with pytest.raises(FedfmsError) as caught:
        load_job(path)
    assert caught.value.ids == ("FMS-J001",)
    assert caught.value.problems[0].where == str(path)


def test_key_given_twice_is_refused_at_every_level(tmp_path: Path) -> None:
    """PyYAML would let the second win: a setting that somebody reads and nobody obeys."""
    text = yaml.safe_dump(content()).replace("  variants: 2\n", "  variants: 2\n  variants: 8\n")
    path = tmp_path / "training.yaml"
    path.write_text(text)
    with pytest.raises(FedfmsError, match="FMS-J001 .*'variants' appears twice"):
        load_job(path)


def test_a_few_lines_that_stand_for_more_than_memory_holds(tmp_path: Path) -> None:
    """From a server that means harm: ten to the twelfth items at each key."""
    steps = "".join(f"x{n + 1}: &x{n + 1} [{', '.join([f'*x{n}'] * 10)}]\n" for n in range(12))
    path = tmp_path / "training.yaml"
    keys = "".join(f"{name}: *x12\n" for name in TrainingJob.model_fields if name != "preprocessing")
    path.write_text(f"x0: &x0 x\n{steps}{keys}preprocessing: {{input_size: *x12, intensity: *x12}}\n")
    with pytest.raises(FedfmsError) as caught:
        load_job(path)
    # Each line begins with the path, whose length is not the point.
    text = str(caught.value).replace(str(path), "training.yaml")
    assert "rounds" in text and len(text) < 20_000
    path.write_text("rounds: " + "[" * 100_000)
    with pytest.raises(FedfmsError, match="FMS-J001"):
        load_job(path)


@pytest.mark.parametrize("make", ["missing", "folder", "binary"])
def test_file_that_is_not_text(tmp_path: Path, make: str) -> None:
    path = tmp_path / "training.yaml"
    if make == "folder":
        path.mkdir()
    if make == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FedfmsError, match="FMS-J001"):
        load_job(path)


OTHER: dict[str, Any] = {
    "task": "other",
    "structures": ["lesion", "organ"],
    "missing_structure": "mask",
    "backbone": "vit_b",
    "backbone_sha256": "0" * 64,
    "scope": "full",
    "adapter.blocks": 1,
    "adapter.ratio": 0.5,
    "adapter.scale": 0.25,
    "preprocessing.input_size": 80,
    "preprocessing.intensity.low": 1,
    "preprocessing.intensity.high": 99,
    "preprocessing.slice_axis": "sagittal",
    "preprocessing.channels": "neighbours",
    "empty_slices": 0.5,
    "rounds": 3,
    "min_clients": 2,
    "straggler_minutes": 1,
    "server_momentum": 0.9,
    "aggregation.max_share": 0.5,
    "aggregation.norm_factor": 20.0,
    "local_work.steps": 5,
    "batch_size": 3,
    "learning_rate": 0.02,
    "weight_decay": 0.02,
    "warmup": 0.5,
    "gradient_clip": 2.0,
    "augmentation.variants": 3,
    "update_norm_limit": 99.0,
    "precision": "bf16",
    "seed": 1,
}


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "rule":
            yield prefix + key


def test_digest_changes_with_any_value() -> None:
    assert set(OTHER) == set(leaves(content())), "a value is not tried"
    digests = {key: parse_job(with_value(content(), key, value), Path("x")).sha256 for key, value in OTHER.items()}
    digests["(none)"] = parse_job(content(), Path("x")).sha256
    kinds = [{"steps": 4}, {"epochs": 4}, {"minutes": 4}]
    work = {parse_job({**content(), "local_work": kind}, Path("x")).sha256 for kind in kinds}
    assert len(set(digests.values())) == len(OTHER) + 1
    assert len(work) == 3
    settings = [
        {"rule": "coordinate_median"},
        {"rule": "trimmed_mean", "trim": 0.1},
        {"rule": "trimmed_mean", "trim": 0.2},
    ]
    settings += [{"rule": "geometric_median"}, {"norm_factor": None}, {}]
    assert len({parse_job({**content(), "aggregation": value}, Path("x")).sha256 for value in settings}) == len(
        settings
    )


def test_a_job_of_before_there_was_aggregation_keeps_its_digest() -> None:
    """Approvals are bound to it. The section with its defaults, or without a key, says the same."""
    values = content()
    written = parse_job(values, Path("x"))
    del values["aggregation"]
    without = parse_job(values, Path("x"))
    assert without == written == parse_job({**values, "aggregation": {"norm_factor": 10}}, Path("x"))
    before = without.model_dump(mode="json")
    assert before.pop("aggregation") == {"rule": "mean", "trim": None, "max_share": 1.0, "norm_factor": 10.0}
    assert without.sha256 == written.sha256 == sha256_json(before)
    assert without.content == before


def test_digest_is_of_the_content_not_of_the_text(tmp_path: Path) -> None:
    plain = write_yaml(tmp_path / "plain.yaml", content())
    commented = tmp_path / "commented.yaml"
    shuffled = dict(reversed(content().items()))
    del shuffled["adapter"]  # its defaults, written out or not, are the same configuration
    shuffled["learning_rate"] = "1.0e-2"
    commented.write_text("# a comment\n" + yaml.safe_dump(shuffled, sort_keys=False) + "\n# another one\n")
    assert load_job(plain).sha256 == load_job(commented).sha256


def test_names_that_pytorch_uses_itself_are_refused() -> None:
    """Each structure is stored in a ModuleDict under its own name."""
    container = nn.ModuleDict()
    names = [name for name in [*dir(container), "training"] if re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name)]
    assert len(names) > 50
    for name in names:
        with pytest.raises(ValidationError, match="PyTorch uses itself"):
            TypeAdapter(StructureName).validate_python(name)
    assert TypeAdapter(StructureName).validate_python("kidney") == "kidney"
