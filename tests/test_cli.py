"""The commands as a user types them: what they print, write, and how they end."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import safetensors.torch
import torch
import typer
import yaml
from PIL import Image
from torchvision.transforms.functional import resize

from fedfms import cli
from fedfms.data.description.site import load_site
from fedfms.data.slices.preparation import SAM_PIXEL_MEAN, SAM_PIXEL_STD
from fedfms.files import sha256_file
from fedfms.job.folder import TRAINING_FILE, job_keys
from fedfms.job.training import load_job
from fedfms.sam.backbones import FOLDER_VARIABLE, load_weights, published_sha256
from fedfms.sam.checkpoint import load_segmenter, save_exchange, save_inference
from fedfms.sam.model import initial_state, schema_of
from tests.command import Command, Result
from tests.generators import raster_dataset, write_raster_site, write_series, write_yaml
from tests.sam.models import config, make_header, make_state

PROJECT = Path(__file__).parents[1]
COMMANDS = {
    "inspect", "evaluate", "predict", "results", "doctor", "poc", "data check", "data init", "data prepare",
    "data preview", "data schema", "data sites", "job new", "job check", "model summary", "model init", "egress",
    "review list", "review show", "review approve", "review reject",
    "kit provision", "kit add-site", "kit renew", "kit install", "kit block", "kit ca-init", "kit request",
    "kit approve", "kit package", "kit verify", "kit list", "kit study", "kit unblock", "notify test",
    "ledger verify", "ledger show",
}  # fmt: skip


def all_commands(group: click.Group, prefix: str = "") -> Iterator[str]:
    """All but hidden ones, which are old names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield prefix + name


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_inference(path, make_header(config()), make_state(config()))
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two patients with one image each, larger than the model's input: one slice to train, one to validate."""
    return write_raster_site(tmp_path / "site", patients=2, images=1, size=(100, 80))


# --- all commands ---------------------------------------------------------------------------------------


def test_commands_are_those_that_others_build_on() -> None:
    group = typer.main.get_command(cli.app)
    assert set(all_commands(group)) == COMMANDS  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["", *sorted(COMMANDS)])
def test_help(fedfms: Command, command: str) -> None:
    result = fedfms(*command.split(), "--help")
    assert result.code == 0
    usage = next(line for line in result.out.splitlines() if "Usage:" in line)
    assert f" {command} [OPTIONS]".replace("  ", " ") in usage
    assert not result.err


def test_entry_point_answers_help_without_torch() -> None:
    code = (
        "import sys; from fedfms.cli import main; sys.argv = ['fedfms', 'job', 'new', '--help']\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'monai', 'matplotlib') if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "Keys:" in result.stdout
    assert result.stderr.strip() == "[]"


def test_installed_command_prints_a_known_failure_and_ends_with_1(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("fedfms")
    arguments = [str(command), "job", "check", str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    Result(result.returncode, result.stdout, result.stderr).failed_with("FMS-J004", str(tmp_path), "1 problem")


# --- model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["full", "adapters+decoder", "decoder"])
def test_model_summary_agrees_with_the_schema(fedfms: Command, scope: str) -> None:
    found = fedfms(
        "model", "summary", "--backbone", "vit_test", "--scope", scope, "--structures", "organ, lesion", "--json"
    ).json()
    schema = schema_of(config(scope=scope))
    assert found["exchanged_parameters"] == schema.parameters
    assert found["exchanged_bytes"] == schema.bytes == 4 * schema.parameters
    assert found["schema_sha256"] == schema.sha256
    assert found["backbone_sha256"] == published_sha256("vit_test")
    assert found["structures"] == ["organ", "lesion"]
    assert found["parameters"] > found["exchanged_parameters"]


def test_model_summary_of_the_default_job(fedfms: Command) -> None:
    job = load_job(PROJECT / "jobs" / "fedmsa" / TRAINING_FILE)
    options = ("--backbone", job.backbone, "--scope", job.scope, "--structures", ",".join(job.structures))
    found = fedfms("model", "summary", *options, "--json").json()
    assert found["schema_sha256"] == schema_of(job.model).sha256
    text = fedfms("model", "summary", *options).out
    assert f"{found['exchanged_bytes']:,}" in text and found["schema_sha256"] in text
    fewer = fedfms("model", "summary", *options, "--blocks", "2", "--json").json()
    assert fewer["exchanged_parameters"] < found["exchanged_parameters"]
    assert fewer["adapter"]["blocks"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--structures", "A,b"), "structures.0"),
        (("--structures", "a,a"), "structures"),
        (("--scope", "all"), "scope"),
        (("--blocks", "0"), "adapter.blocks"),
        (("--blocks", "99"), "adapter.blocks"),
        (("--blocks", "some"), "adapter.blocks"),
        (("--input-size", "512"), "256 pixels only"),
        (("--input-size", "100"), "multiple of 16"),
    ],
)
def test_model_summary_of_an_impossible_model(fedfms: Command, options: tuple[str, ...], words: str) -> None:
    scope = () if "--scope" in options else ("--scope", "adapters+decoder")
    error = fedfms("model", "summary", "--backbone", "vit_t", *scope, *options).failed_with("FMS-M005")
    assert words in error


def test_unknown_backbone_is_a_usage_error(fedfms: Command) -> None:
    for arguments in (("summary", "--scope", "full", "--backbone", "vit_x"), ("init", "vit_x"), ("init", "vit_test")):
        result = fedfms("model", *arguments)
        assert result.code == 2 and "vit_b" in result.err


def test_model_init_writes_a_file_that_jobs_can_name(
    fedfms: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    result = fedfms("model", "init", "vit_t", "--seed", "5")
    (path,) = tmp_path.iterdir()
    digest = sha256_file(path)
    assert str(path) in result.out
    assert f"backbone_sha256={digest}" in result.out.splitlines()
    weights = load_weights("vit_t", digest)
    assert weights.keys() == load_weights("vit_t", published_sha256("vit_t")).keys()
    other = fedfms("model", "init", "vit_t", "--seed", "6", "--out", str(tmp_path / "other"))
    assert digest not in other.out and len(list((tmp_path / "other").iterdir())) == 1


def test_model_init_needs_a_folder(fedfms: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    result = fedfms("model", "init", "vit_t")
    assert result.code == 2 and FOLDER_VARIABLE in result.err
    (tmp_path / "file").write_text("in the way")
    fedfms("model", "init", "vit_t", "--out", str(tmp_path / "file")).failed_with("FMS-D011", str(tmp_path / "file"))


# --- inspect --------------------------------------------------------------------------------------------


def test_inspect_says_what_a_checkpoint_is(fedfms: Command, checkpoint: Path) -> None:
    found = fedfms("inspect", "--json", checkpoint).json()
    summary = fedfms(
        "model", "summary", "--backbone", "vit_test", "--scope", "adapters+decoder", "--structures", "organ,lesion",
        "--json",
    ).json()  # fmt: skip
    assert {key: found[key] for key in summary} == summary
    assert (found["kind"], found["task"], found["rounds"]) == ("inference", "organ-lesion", 2)
    assert found["file_sha256"] == sha256_file(checkpoint)
    tensors = safetensors.torch.load_file(str(checkpoint))
    assert {name: item["shape"] for name, item in found["tensors"].items()} == {
        name: list(tensor.shape) for name, tensor in tensors.items()
    }
    text = fedfms("inspect", checkpoint).out
    assert f"{len(tensors)} tensors" in text and found["schema_sha256"] in text


def test_inspect_of_an_exchange_file_names_the_exchanged_tensors(fedfms: Command, tmp_path: Path) -> None:
    path = tmp_path / "exchange.safetensors"
    save_exchange(path, make_header(config()), make_state(config()))
    found = fedfms("inspect", "--json", path).json()
    assert set(found["tensors"]) == set(schema_of(config()).names)
    assert found["kind"] == "exchange"


@pytest.mark.parametrize("what", ["missing", "folder", "text"])
def test_inspect_of_something_else(fedfms: Command, tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    if what == "folder":
        path.mkdir()
    if what == "text":
        path.write_text("hello, this is not a checkpoint")
    assert str(path) in fedfms("inspect", path).failed_with("FMS-M003")


# --- evaluate -------------------------------------------------------------------------------------------


def by_hand(checkpoint: Path, folder: Path, name: str) -> dict[str, tuple[float, float]]:
    """Dice and IoU per structure of one PNG, without the project's data and metric code."""
    model, _ = load_segmenter(checkpoint)
    pixels = np.asarray(Image.open(folder / "images" / name))
    labels = np.asarray(Image.open(folder / "masks" / name))
    height, width = pixels.shape[:2]
    scaled = (64, int(64 * width / height + 0.5))
    image = resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float(), list(scaled), antialias=True)
    image = (image - torch.tensor(SAM_PIXEL_MEAN)[:, None, None]) / torch.tensor(SAM_PIXEL_STD)[:, None, None]
    padded = torch.zeros(3, 64, 64)
    padded[:, : scaled[0], : scaled[1]] = image
    with torch.no_grad():
        logits = model(padded[None])[0, :, : scaled[0], : scaled[1]]
    found = resize(logits, [height, width], antialias=False).numpy() > 0
    result = {}
    for structure, predicted, reference in zip(("organ", "lesion"), found, (labels > 0, labels == 2), strict=True):
        assert 0.02 < predicted.mean() < 0.98, "a constant answer would show nothing"
        both = int((predicted & reference).sum())
        result[structure] = (
            2 * both / (int(predicted.sum()) + int(reference.sum())),
            both / int((predicted | reference).sum()),
        )
    return result


def test_evaluate_agrees_with_a_computation_by_hand(
    fedfms: Command, checkpoint: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedfms.training.hardware._gains_by_bf16", lambda _: False)
    out = tmp_path / "out"
    result = fedfms("evaluate", "--model", checkpoint, "--site", site, "--split", "all", "--out", out)
    assert result.code == 0 and str(out / "metrics.json") in result.out
    metrics = json.loads((out / "metrics.json").read_text())
    one, other = (by_hand(checkpoint, site.parent, name) for name in ("p0_0.png", "p1_0.png"))
    for structure in ("organ", "lesion"):
        values = metrics["structures"][structure]
        assert set(values) == {"dice", "iou", "hd95_mm", "assd_mm", "support"}
        for position, metric in enumerate(("dice", "iou")):
            expected = [found[structure][position] for found in (one, other)]
            # Half of the draws of two patients hold one patient twice, so the interval reaches from one to the other.
            assert set(values[metric]) == {"mean", "low", "high", "n"} and values[metric]["n"] == 2
            assert values[metric]["mean"] == pytest.approx(sum(expected) / 2, abs=1e-6)
            assert [values[metric]["low"], values[metric]["high"]] == pytest.approx(sorted(expected), abs=1e-6)
            assert 0 < values[metric]["mean"] < 0.9
            assert "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**values[metric]) in result.out
        # Photographs have no millimetres.
        assert values["hd95_mm"] == values["assd_mm"] == {"mean": None, "low": None, "high": None, "n": 0}
        assert values["support"]["without_spacing"] == 2
        assert metrics["per_slice"][structure] == values
    assert (metrics["patients"], metrics["cases"], metrics["slices"], metrics["split"]) == (2, 2, 2, "all")
    assert "2 patients, 2 cases (all)" in result.out and "without spacing" in result.out
    assert "not for diagnosis" in metrics["notice"] and "not for diagnosis" in result.out
    assert metrics["schema_sha256"] == schema_of(config()).sha256
    assert metrics["model_sha256"] == sha256_file(checkpoint)


def test_evaluate_numbers_cases_and_names_them_only_when_told(
    fedfms: Command, checkpoint: Path, tmp_path: Path
) -> None:
    site = write_raster_site(tmp_path / "site", patients=2, images=2)
    arguments = ("evaluate", "--model", checkpoint, "--site", site, "--split", "all", "--out")
    assert (
        fedfms(*arguments, tmp_path / "without").code == fedfms(*arguments, tmp_path / "with", "--show-ids").code == 0
    )
    tables = {}
    for folder in ("without", "with"):
        cases = json.loads((tmp_path / folder / "metrics.json").read_text())["per_case"]
        with (tmp_path / folder / "cases.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(case["case"], case["patient"]) for case in cases] == [(1, 1), (2, 1), (3, 2), (4, 2)]
        assert [(row["case"], row["structure"]) for row in rows] == [
            (str(case["case"]), structure) for case in cases for structure in ("organ", "lesion")
        ]
        for row in rows:
            scores = cases[int(row["case"]) - 1]["structures"][row["structure"]]
            assert float(row["dice"]) == scores["dice"] and row["hd95_mm"] == "" and scores["hd95_mm"] is None
            assert row["outcome"] == scores["outcome"] == "found"
        tables[folder] = rows
    written = [path.read_text() for path in (tmp_path / "without").iterdir()]
    assert not any(name in text for text in written for name in ("p0", "p1", "photographs", str(tmp_path)))
    assert [row["identity"] for row in tables["with"]][::2] == [
        f"photographs/images/{name}.png" for name in ("p0_0", "p0_1", "p1_0", "p1_1")
    ]
    assert [{**row, "identity": None} for row in tables["with"]] == [
        {**row, "identity": None} for row in tables["without"]
    ]


def test_evaluate_prints_its_result_before_it_fails_to_write_it(
    fedfms: Command, checkpoint: Path, site: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    result = fedfms("evaluate", "--model", checkpoint, "--site", site, "--out", tmp_path / "out")
    assert result.code == 1 and "FMS-D011" in result.err
    assert "lesion" in result.out and "written" not in result.out


def test_evaluate_scores_validation_patients_unless_told(
    fedfms: Command, checkpoint: Path, site: Path, tmp_path: Path
) -> None:
    fedfms("evaluate", "--model", checkpoint, "--site", site, "--out", tmp_path / "default")
    for split in ("validation", "train"):
        fedfms("evaluate", "--model", checkpoint, "--site", site, "--split", split, "--out", tmp_path / split)
    default, named, train = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("default", "validation", "train")
    )
    assert default == named and default["cases"] == 1
    assert train["structures"] != default["structures"]


def test_evaluate_takes_both_kinds_of_checkpoint(fedfms: Command, checkpoint: Path, site: Path, tmp_path: Path) -> None:
    exchange = tmp_path / "exchange.safetensors"
    save_exchange(exchange, make_header(config()), make_state(config()))
    for name, path in (("one", checkpoint), ("other", exchange)):
        assert fedfms("evaluate", "--model", path, "--site", site, "--out", tmp_path / name).code == 0
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "other"))
    assert one.pop("model_sha256") != other.pop("model_sha256")
    assert one == other


def test_evaluate_says_not_estimable_of_an_empty_reference(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "site", patients=2, images=1)
    for name in ("p0_0.png", "p1_0.png"):
        path = tmp_path / "site" / "masks" / name
        labels = np.asarray(Image.open(path)).copy()
        labels[labels == 2] = 1
        Image.fromarray(labels).save(path)
    result = fedfms("evaluate", "--model", checkpoint, "--site", site, "--out", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    lesion = metrics["structures"]["lesion"]
    assert lesion["dice"] == lesion["iou"] == {"mean": None, "low": None, "high": None, "n": 0}
    support = {"annotated": 1, "estimable": 0, "patients": 0, "missed": 0, "false_alarms": 1, "without_spacing": 0}
    assert lesion["support"] == support
    assert metrics["per_case"][0]["structures"]["lesion"]["outcome"] == "false_alarm"
    assert "not estimable" in result.out


def test_evaluate_is_refused_when_structures_or_task_differ(
    fedfms: Command, checkpoint: Path, site: Path, tmp_path: Path
) -> None:
    other = write_raster_site(
        tmp_path / "other", masks=[{"pattern": "masks/{case}.png", "labels": {"cortex": [1, 2]}}], task="kidney"
    )
    arguments = ("evaluate", "--model", checkpoint, "--out", tmp_path / "out", "--site")
    error = fedfms(*arguments, other).failed_with("FMS-J003")
    assert "task organ-lesion" in error and "kidney" in error
    error = fedfms(*arguments, other, "--task", "kidney").failed_with("FMS-M004", str(checkpoint))
    assert "it segments organ, lesion; site.yaml has, for task kidney, cortex" in error
    error = fedfms(*arguments, site, "--split", "test").failed_with("FMS-D008")
    assert "no case for test" in error
    assert not (tmp_path / "out").exists()
    assert fedfms(*arguments, site, "--split", "everything").code == 2


def test_evaluate_scores_the_structures_that_the_site_has(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    optional = {"pattern": "none/{case}.png", "labels": {"lesion": 1}, "required": False}
    masks = [{"pattern": "masks/{case}.png", "labels": {"organ": [1, 2]}}, optional]
    named = write_raster_site(tmp_path / "named", masks=masks)
    result = fedfms("evaluate", "--model", checkpoint, "--site", named, "--out", tmp_path / "out")
    assert result.code == 0 and "not annotated" in result.out


def test_evaluate_takes_the_data_of_another_task_when_told(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    other = write_raster_site(tmp_path / "other", task="kidney")
    arguments = ("--site", other, "--task", "kidney", "--out", tmp_path / "out")
    assert fedfms("evaluate", "--model", checkpoint, *arguments).code == 0


def test_evaluate_refuses_a_checkpoint_of_another_architecture(
    fedfms: Command, checkpoint: Path, site: Path, tmp_path: Path
) -> None:
    """The tensors of one model under the header of another."""
    swapped = tmp_path / "swapped.safetensors"
    header = make_header(config(scope="decoder")).model_copy(update={"kind": "inference"})
    tensors = safetensors.torch.load_file(str(checkpoint))
    safetensors.torch.save_file(tensors, str(swapped), metadata={"fedfms": header.model_dump_json()})
    arguments = ("--site", site, "--out", tmp_path / "out")
    assert str(swapped) in fedfms("evaluate", "--model", swapped, *arguments).failed_with("FMS-M004")
    exchange = tmp_path / "exchange.safetensors"
    save_exchange(exchange, make_header(config(backbone_sha256="0" * 64)), initial_state(config(), 0))
    fedfms("evaluate", "--model", exchange, *arguments).failed_with("FMS-M002", "0" * 64)


def test_evaluate_with_a_broken_site_file_and_a_broken_image(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "site")
    arguments = ("evaluate", "--model", checkpoint, "--out", tmp_path / "out", "--site")
    (tmp_path / "site" / "images" / "p1_1.png").write_bytes(b"\x89PNG")
    assert "p1_1.png" in fedfms(*arguments, site).failed_with("FMS-D004")
    fedfms(*arguments, tmp_path / "none.yaml").failed_with("FMS-D001", "none.yaml")


# --- data -----------------------------------------------------------------------------------------------


def test_data_check_of_a_good_site(fedfms: Command, tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "site")
    result = fedfms("data", "check", site)
    assert result.code == 0
    assert "PASS" in result.out and "4 patients, 8 cases" in result.out
    found = fedfms("data", "check", site, "--json").json()
    assert found["ok"] and not [item for item in found["findings"] if item["severity"] == "FAIL"]
    assert found["datasets"][0]["cases"] == 8


def test_data_check_says_each_thing_once(fedfms: Command, tmp_path: Path) -> None:
    """Pixels that are alike but for the last digit, and no table of structures where there is none."""
    write_series(tmp_path / "case1", np.ones((8, 8, 2), np.uint16), np.diag([0.5, 0.5000001, 3, 1]))
    dataset = raster_dataset(
        format="dicom", root=".", images={"pattern": "{case}"}, masks=[], patient={"rule": "dicom_patient_id"}
    )
    result = fedfms("data", "check", write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]}))
    assert "pixels: 8 x 8, 0.50 mm\n" in result.out
    assert "annotated cases" not in result.out


def test_data_check_lists_every_problem_and_ends_with_1(fedfms: Command, tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "site")
    (tmp_path / "site" / "images" / "p1_1.png").write_bytes(b"\x89PNG")
    (tmp_path / "site" / "masks" / "p2_0.png").unlink()
    result = fedfms("data", "check", site)
    assert result.code == 1 and "Traceback" not in result.err
    assert "FMS-D004" in result.out and "FMS-D003" in result.out and "FAIL: 2 finding(s)" in result.out
    assert "p1_1" not in result.out and "p2_0" not in result.out and "--show-ids" in result.out
    shown = fedfms("data", "check", site, "--show-ids").out
    assert any("FMS-D004" in line and "p1_1.png" in line and " -> " in line for line in shown.splitlines())
    found = fedfms("data", "check", site, "--json")
    assert found.code == 1
    fails = [item for item in found.json()["findings"] if item["severity"] == "FAIL"]
    assert {item["id"] for item in fails} == {"FMS-D003", "FMS-D004"}
    assert all(item["place"] and item["title"] and item["remedy"] and item["count"] == 1 for item in fails)
    assert "p1_1.png" in fedfms("data", "check", site, "--json", "--show-ids").out
    absent = fedfms("data", "check", tmp_path / "none.yaml")
    assert absent.code == 1 and "FMS-D001" in absent.out


def test_data_check_lists_what_is_left_out_and_passes(fedfms: Command, tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "site")
    write_yaml(site, {**yaml.safe_load(site.read_text()), "strict": False})
    (tmp_path / "site" / "images" / "p1_1.png").write_bytes(b"\x89PNG")
    result = fedfms("data", "check", site)
    assert result.code == 0 and "PASS" in result.out
    (line,) = [line for line in result.out.splitlines() if "FMS-D004" in line]
    assert "WARN" in line and "left out" in line
    assert fedfms("data", "check", site, "--json").json()["datasets"][0]["cases_left_out"] == 1


def hospitals(root: Path) -> Path:
    """Two hospital folders as ``fedfms data sites`` expects them; the second one lacks the cup."""
    for name, folders in (("north", ("masks", "masks_cup")), ("south", ("masks",))):
        write_raster_site(root / name)
        (root / name / "site.yaml").unlink()
        for path in (root / name / "masks").iterdir():
            labels = np.asarray(Image.open(path))
            for folder in folders:
                (root / name / folder).mkdir(exist_ok=True)
                Image.fromarray(((labels > 0) * 255).astype(np.uint8)).save(root / name / folder / path.name)
    return root


def test_data_sites_writes_files_that_pass_the_check(fedfms: Command, tmp_path: Path) -> None:
    root, out = hospitals(tmp_path / "root"), tmp_path / "sites"
    result = fedfms(
        "data", "sites", root, "--structure", "disc=masks", "--structure", "cup=masks_cup", "--task", "fundus",
        "--out", out,
    )  # fmt: skip
    assert result.code == 0
    assert result.out.split() == [str(out / "north.yaml"), str(out / "south.yaml")]
    assert "south: no masks_cup/, so the site lacks structure cup" in result.err
    assert "each image counts as a patient" in result.err
    assert f"FEDFMS_SITES={out} nvflare simulator JOB -c north,south" in result.err
    for name, structures in (("north", ("disc", "cup")), ("south", ("disc",))):
        assert fedfms("data", "check", out / f"{name}.yaml").code == 0
        (dataset,) = load_site(out / f"{name}.yaml").datasets
        assert (dataset.task, dataset.structures) == ("fundus", structures)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--structure", "disc"), "--structure"),
        (("--structure", "Disc=masks"), "--structure"),
        (("--structure", "disc=masks", "--structure", "disc=x"), "--structure"),
        (("--structure", "disc=masks", "--task", "Disc and cup"), "--task"),
        (("--structure", "disc=masks", "--task", ""), "--task"),
        (("--structure", "disc=masks", "--patient-expression", "^p[0-9]+"), "--patient-expression"),
        (("--structure", "disc=masks", "--patient-expression", "^(p"), "--patient-expression"),
        (
            ("--structure", "disc=masks", "--patient-expression", "^(p)", "--patient-column", "patient"),
            "--patient-expression",
        ),
    ],
)
def test_data_sites_with_wrong_options(fedfms: Command, tmp_path: Path, options: tuple[str, ...], hint: str) -> None:
    result = fedfms("data", "sites", tmp_path, *options, "--out", tmp_path / "sites")
    assert result.code == 2
    assert f"Invalid value for {hint}" in result.err
    assert not (tmp_path / "sites").exists()


def test_data_sites_of_a_folder_without_hospitals(fedfms: Command, tmp_path: Path) -> None:
    arguments = ("--structure", "disc=masks", "--out", tmp_path / "sites")
    fedfms("data", "sites", tmp_path / "none", *arguments).failed_with("FMS-D013", str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    fedfms("data", "sites", tmp_path / "empty", *arguments).failed_with("FMS-D013", "images/")


@pytest.mark.shared_data
def test_data_sites_of_the_brain_hospitals(fedfms: Command, shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "brain_lgg_flair"
    options = ("--structure", "tumour=masks", "--patient-column", "patient", "--out", tmp_path)
    result = fedfms("data", "sites", root, *options)
    assert result.code == 0
    files = [Path(line) for line in result.out.splitlines()]
    assert len(files) == 4
    assert "each image counts as a patient" not in result.err
    for file in files:
        (dataset,) = load_site(file).datasets
        assert dataset.structures == ("tumour",)
        assert yaml.safe_load(file.read_text())["datasets"][0]["patient"] == {"rule": "column", "column": "patient"}
    assert fedfms("data", "check", files[0]).code == 0


# --- job ------------------------------------------------------------------------------------------------


def test_job_new_and_check(fedfms: Command, tmp_path: Path) -> None:
    source, out = PROJECT / "jobs" / "fedmsa", tmp_path / "mine"
    result = fedfms("job", "new", "--from", source, "--set", "structures=tumour", "--set", "rounds=5", "--out", out)
    job = load_job(out / TRAINING_FILE)
    assert (job.structures, job.rounds) == (("tumour",), 5)
    assert job.sha256 in result.out and str(out) in result.out
    checked = fedfms("job", "check", out)
    schema = schema_of(job.model)
    assert checked.code == 0 and f"{schema.parameters:,}" in checked.out and f"{schema.bytes:,}" in checked.out


def test_job_new_lists_its_keys(fedfms: Command) -> None:
    text = "".join(fedfms("job", "new", "--help").out.replace("│", "").split())
    assert all(key in text for key in job_keys())


def test_job_new_refused(fedfms: Command, tmp_path: Path) -> None:
    source = ("job", "new", "--from", PROJECT / "jobs" / "fedmsa", "--out", tmp_path / "mine")
    error = fedfms(*source, "--set", "lr=1", "--set", "epochs=3").failed_with("FMS-J002", "lr", "epochs", "rounds")
    assert "2 problem(s)" in error
    fedfms("job", "new", "--from", tmp_path, "--out", tmp_path / "mine").failed_with("FMS-J004", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_job_check_of_an_invalid_and_of_an_impossible_job(fedfms: Command, tmp_path: Path) -> None:
    fedfms("job", "new", "--from", PROJECT / "jobs" / "fedmsa", "--out", tmp_path / "mine")
    path = tmp_path / "mine" / TRAINING_FILE
    text = path.read_text()
    path.write_text(text.replace("blocks: all", "blocks: 11"))
    fedfms("job", "check", tmp_path / "mine").failed_with("FMS-M005", "adapter.blocks")
    path.write_text(text.replace("rounds: 3", "rounds: 3\nmomentum: 1"))
    error = fedfms("job", "check", tmp_path / "mine").failed_with("FMS-J002", "momentum", "unknown key")
    assert str(path) in error
