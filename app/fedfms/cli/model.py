"""``fedfms inspect`` and ``fedfms model``: describe checkpoints, backbones and scopes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedfms.cli.printing import AsJson, print_json, print_pairs

model_app = typer.Typer(no_args_is_help=True, help="Backbones and what a scope exchanges.")


def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint written by fedfms.")], as_json: AsJson = False
) -> None:
    """Describe a checkpoint: architecture, structures, scope, parameters, bytes, digests."""
    from fedfms.sam.checkpoint import describe

    content = describe(file)
    if as_json:
        print_json(content)
        return
    tensors = content.pop("tensors")
    print_pairs(content)
    print(f"{len(tensors)} tensors; their names: fedfms inspect --json {file}")


@model_app.command("summary")
def model_summary(
    backbone: Annotated[str, typer.Option(help="vit_t, vit_b, vit_l, vit_h or vit_test.")],
    scope: Annotated[str, typer.Option(help="full, adapters+decoder or decoder.")],
    structures: Annotated[str, typer.Option(help="Names of the structures, separated by commas.")] = "structure",
    input_size: Annotated[
        int | None, typer.Option(help="Input size in pixels; by default the backbone's native size.")
    ] = None,
    blocks: Annotated[str, typer.Option(help="Blocks with adapters: all, or the last k.")] = "all",
    as_json: AsJson = False,
) -> None:
    """Count parameters and bytes of a backbone in a scope. Needs no weights."""
    from fedfms.configuration import validated
    from fedfms.errors import MODEL_INVALID
    from fedfms.sam.backbones import BACKBONES, published_sha256
    from fedfms.sam.checkpoint import summary
    from fedfms.sam.config import ModelConfig

    if backbone not in BACKBONES:
        raise typer.BadParameter(f"write one of {', '.join(BACKBONES)}", param_hint="--backbone")
    options = {
        "backbone": backbone,
        "backbone_sha256": published_sha256(backbone),
        "input_size": input_size or BACKBONES[backbone].native_size,
        "structures": [name.strip() for name in structures.split(",")],
        "scope": scope,
        "adapter": {"blocks": int(blocks) if blocks.isdecimal() else blocks},
    }
    config = validated(ModelConfig, options, MODEL_INVALID, Path("options"))
    content = summary(config)
    if as_json:
        print_json(content)
    else:
        print_pairs(content)


@model_app.command("init")
def model_init(
    backbone: Annotated[str, typer.Argument(help="vit_t, vit_b, vit_l or vit_h.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; FEDFMS_BACKBONES if not given.")] = None,
) -> None:
    """Write a backbone file with random weights, for trials without a download, and print its digest."""
    import hashlib

    from fedfms.files import atomic_path, environment_folder
    from fedfms.sam.backbones import BACKBONES, FOLDER_VARIABLE, random_weights, serialise

    # vit_test is made on the spot and never looked up in a folder.
    names = [name for name in BACKBONES if name != "vit_test"]
    if backbone not in names:
        raise typer.BadParameter(f"write one of {', '.join(names)}", param_hint="BACKBONE")
    folder = out or environment_folder(FOLDER_VARIABLE)
    if folder is None:
        raise typer.BadParameter(f"give --out FOLDER or set {FOLDER_VARIABLE}", param_hint="--out")
    content = serialise(random_weights(BACKBONES[backbone], seed))
    path = folder / f"{backbone}-random-{seed}.safetensors"
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    print(f"{path}: random weights, for trials only")
    print(f"backbone_sha256={hashlib.sha256(content).hexdigest()}")
