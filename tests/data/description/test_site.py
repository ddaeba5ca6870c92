from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfms.data.description.site import load_site
from fedfms.errors import FedfmsError
from tests.command import Command
from tests.generators import raster_dataset, write_yaml


def problems_of(path: Path) -> list[str]:
    with pytest.raises(FedfmsError) as caught:
        load_site(path)
    assert set(caught.value.ids) <= {"FMS-D001", "FMS-D002"}
    return [str(problem) for problem in caught.value.problems]


def test_paths_are_relative_to_the_folder_of_the_file(tmp_path: Path) -> None:
    content = {"compute": {"cache_dir": "cache"}, "datasets": [raster_dataset(root="../elsewhere")]}
    (tmp_path / "local").mkdir()
    site = load_site(write_yaml(tmp_path / "local" / "site.yaml", content))
    assert site.datasets[0].root.resolve() == tmp_path / "elsewhere"
    assert site.compute.cache_dir == tmp_path / "local" / "cache"


def test_an_absolute_root_stays(tmp_path: Path) -> None:
    site = load_site(write_yaml(tmp_path / "site.yaml", {"datasets": [raster_dataset(root="/data/x")]}))
    assert site.datasets[0].root == Path("/data/x")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just text"])
def test_a_file_that_is_not_a_mapping_is_d001(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text, encoding="utf-8")
    assert problems_of(path)[0].startswith("FMS-D001")


def test_a_missing_file_is_d001(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "site.yaml")[0].startswith("FMS-D001")


def test_unknown_missing_and_wrong_keys_come_in_one_message(tmp_path: Path) -> None:
    first = raster_dataset(colour="red")
    del first["task"]
    second = raster_dataset(name="b", format="jpeg2000", patient={"rule": "column"})
    content = {"datasets": [first, second], "compute": {"device": "tpu", "gpu": 1}, "extra": 1}
    texts = problems_of(write_yaml(tmp_path / "site.yaml", content))
    for key, sentence in [
        ("datasets.0.task", "this key is missing"),
        ("datasets.0.colour", "unknown key"),
        ("datasets.1.format", "'raster', 'nifti', 'itk' or 'dicom'"),
        ("datasets.1.patient.column", "this key is missing"),
        ("compute.device", "'auto', 'cpu' or 'cuda'"),
        ("compute.gpu", "unknown key"),
        ("extra", "unknown key"),
    ]:
        assert any(f": {key}: " in text and sentence in text for text in texts), (key, texts)
    assert len(texts) == 7


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": {}}, "give either pattern or manifest"),
        ({"images": {"pattern": "a/{case}.png", "manifest": "m.csv", "column": "x"}}, "give either"),
        ({"images": {"manifest": "m.csv"}}, "manifest needs column"),
        ({"images": {"pattern": "images/*.png"}}, "the pattern needs {case}"),
        ({"images": {"pattern": "images/{case}/{slice}.png"}}, "unknown placeholder {slice}"),
        ({"images": {"pattern": "../{case}.png"}}, "stays below it"),
        ({"images": {"pattern": "images/{case}.png", "files": "*.dcm"}}, "images.files is for format dicom"),
        ({"masks": [{"labels": {"organ": 1}}]}, "give either pattern or column"),
        ({"masks": [{"column": "mask", "labels": {"organ": 1}}]}, "masks.0.column needs images.manifest"),
        ({"masks": [{"pattern": "{patient}/{case}.png", "labels": {"organ": 1}}]}, "but images.pattern has not"),
        ({"masks": [{"pattern": "{case}.png", "labels": {"organ": 1.5}}]}, "or nonzero"),
        ({"masks": [{"pattern": "{case}.png", "labels": {"organ": ["x", None]}}]}, "or nonzero"),
        ({"masks": [{"pattern": "{case}.png", "labels": {"organ": {"code": "1"}}}]}, "or nonzero"),
        ({"masks": [{"pattern": "{case}.png", "labels": {"organ": {"scheme": "SCT", "code": ""}}}]}, "or nonzero"),
        ({"masks": [{"pattern": "{case}.png", "labels": {"organ": []}}]}, "at least one value"),
        ({"masks": [{"pattern": "{case}.png", "labels": {"organ": True}}]}, "or nonzero"),
        ({"masks": [{"pattern": "{case}.png", "labels": {}}]}, "give at least one"),
        ({"masks": [{"pattern": f"{m}/{{case}}.png", "labels": {"organ": 1}} for m in "ab"]}, "under two masks"),
        ({"patient": {"rule": "pattern"}}, "needs {patient} in images.pattern"),
        ({"patient": {"rule": "column", "column": "p"}}, "patient.rule column needs images.manifest"),
        ({"patient": {"rule": "dicom_patient_id"}}, "is for format dicom"),
        ({"patient": {"rule": "name", "expression": "("}}, "not a regular expression"),
        ({"patient": {"rule": "name", "expression": "abc"}}, "exactly one group"),
        ({"split": {"rule": "column", "column": "split"}}, "split.rule column needs images.manifest"),
        ({"split": {"rule": "by_patient", "validation": 0.6, "test": 0.5}}, "below 1"),
        ({"split": {"rule": "by_patient", "validation": 1.5}}, "less than 1"),
    ],
)
def test_parts_that_do_not_fit_together_are_d002(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    texts = problems_of(write_yaml(tmp_path / "site.yaml", {"datasets": [raster_dataset(**changes)]}))
    assert any(text.startswith("FMS-D002") and sentence in text for text in texts), texts


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("whole", "strict", 1),
        ("whole", "strict", "no"),
        ("compute", "gradient_checkpointing", "yes"),
        ("mask", "required", 0),
        ("mask", "ignore_values", [True]),
        ("mask", "ignore_values", ["3"]),
        ("images", "series", {"dimensions": {"StackID": True}}),
    ],
)
def test_no_value_is_taken_for_another(tmp_path: Path, section: str, key: str, value: Any) -> None:
    dataset = raster_dataset(format="dicom", masks=[{"pattern": "{case}.nii", "labels": {"organ": 1}}])
    content = {"datasets": [dataset], "compute": {}}
    places = {"whole": content, "compute": content["compute"], "mask": dataset["masks"][0], "images": dataset["images"]}
    load_site(write_yaml(tmp_path / "good.yaml", content))
    places[section][key] = value
    assert f"{key}" in problems_of(write_yaml(tmp_path / "bad.yaml", content))[0]


def test_words_of_a_split_column_stand_for_one_split(tmp_path: Path) -> None:
    split = {"rule": "column", "column": "s", "words": {"train": ["a"], "test": ["a"]}}
    dataset = raster_dataset(images={"manifest": "m.csv", "column": "i"}, split=split)
    assert "two splits: a" in problems_of(write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]}))[0]


def test_two_datasets_need_two_names(tmp_path: Path) -> None:
    content = {"datasets": [raster_dataset(), raster_dataset()]}
    assert "two datasets have the name photographs" in problems_of(write_yaml(tmp_path / "s.yaml", content))[0]


def test_a_site_describes_at_least_one_dataset(tmp_path: Path) -> None:
    assert "give at least one" in problems_of(write_yaml(tmp_path / "s.yaml", {"datasets": []}))[0]


def documented_keys(model: Any, seen: set[Any]) -> set[str]:
    """Every key a site.yaml may hold, by the models' fields."""
    from typing import get_args

    from pydantic import BaseModel

    names: set[str] = set()
    if isinstance(model, type) and issubclass(model, BaseModel):
        if model not in seen:
            seen.add(model)
            for name, field in model.model_fields.items():
                names |= {name} | documented_keys(field.annotation, seen)
        return names
    for part in get_args(model):
        names |= documented_keys(part, seen)
    return names


def test_the_guide_explains_every_key_and_its_example_is_valid(tmp_path: Path) -> None:
    from fedfms.data.description.site import SiteDescription

    text = (Path(__file__).parents[3] / "docs" / "site-data.md").read_text(encoding="utf-8")
    keys = documented_keys(SiteDescription, set())
    assert {"datasets", "cache_gb", "ignore_values", "validation_from_train", "expression"} <= keys
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []
    examples = [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
    assert len(examples) >= 3
    for example in examples:
        content = yaml.safe_load(example)
        load_site(write_yaml(tmp_path / "site.yaml", content))


def test_the_published_schema_is_the_packages_own(fedfms: Command) -> None:
    published = json.loads((Path(__file__).parents[3] / "docs" / "site.schema.json").read_text(encoding="utf-8"))
    assert published == fedfms("data", "schema").json(), "write it again: fedfms data schema > docs/site.schema.json"


def test_the_schema_knows_every_key_and_what_labels_take(fedfms: Command) -> None:
    from fedfms.data.description.site import SiteDescription

    schema = fedfms("data", "schema").json()
    parts = [schema, *schema["$defs"].values()]
    (structure,) = schema["$defs"]["MaskSource"]["properties"]["labels"]["patternProperties"].values()
    labels = structure["anyOf"]
    keys = {key for part in [*parts, labels[2]] for key in part["properties"]}
    assert keys == documented_keys(SiteDescription, set())
    assert all(part["additionalProperties"] is False for part in parts), "unknown keys are errors"
    assert [item["type"] for item in labels] == ["integer", "string", "object", "array"]


def keywords(schema: Any) -> set[str]:
    """Every key of a schema that is not the name of a key of ``site.yaml`` or of a definition."""
    if isinstance(schema, list):
        return set().union(*map(keywords, schema))
    if not isinstance(schema, dict):
        return set()
    named = ("properties", "patternProperties", "$defs", "mapping")
    inner = [part for key, value in schema.items() if key != "default" for part in _parts(key in named, value)]
    return set(schema) | set().union(*map(keywords, inner))


def _parts(named: bool, value: Any) -> list[Any]:
    return list(value.values()) if named else [value]


def test_the_schema_has_only_words_that_validators_know(fedfms: Command) -> None:
    """pydantic writes a bound that it cannot translate under a word of its own, which validators ignore."""
    known = """
        $defs $ref $schema additionalProperties anyOf const default description discriminator enum exclusiveMaximum
        exclusiveMinimum format items mapping maximum minItems minLength minProperties minimum oneOf pattern
        patternProperties properties propertyName required title type
        """
    assert keywords(fedfms("data", "schema").json()) <= set(known.split())


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("whole", "datasets", []),
        ("whole", "colour", "red"),
        ("compute", "cache_gb", -1),
        ("compute", "max_batch", 0),
        ("split", "validation", 1),
        ("split", "seed", -1),
        ("dataset", "name", "a b"),
        ("images", "series", {}),
        ("mask", "labels", {}),
        ("mask", "labels", {"Organ": 1}),
        ("mask", "labels", {"organ": []}),
        ("mask", "labels", {"organ": " "}),
        ("mask", "labels", {"organ": True}),
        ("mask", "required", "no"),
        ("mask", "ignore_values", ["3"]),
    ],
)
def test_schema_and_loader_accept_and_refuse_the_same(
    fedfms: Command, tmp_path: Path, place: str, key: str, value: Any
) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="in the test extra: pip install -e '.[test]'")
    validator = jsonschema.Draft202012Validator(fedfms("data", "schema").json())
    labels = {"organ": [1, 2], "lesion": {"scheme": "SCT", "code": 4147007}, "cyst": "Cyst", "all": "nonzero"}
    mask = {"pattern": "{case}.dcm", "labels": labels, "ignore_values": [3], "required": False}
    dataset = raster_dataset(format="dicom", masks=[mask], split={"rule": "by_patient", "validation": 0.25})
    content = {"strict": False, "compute": {"cache_gb": 0}, "datasets": [dataset]}
    load_site(write_yaml(tmp_path / "good.yaml", content))
    assert validator.is_valid(content)
    places = {"whole": content, "dataset": dataset, "images": dataset["images"], "split": dataset["split"]}
    {**places, "mask": mask, "compute": content["compute"]}[place][key] = value
    problems_of(write_yaml(tmp_path / "bad.yaml", content))
    assert not validator.is_valid(content)
