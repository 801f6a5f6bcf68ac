"""`python -m models …`: train a policy or a 2-D toy, export it to ONNX, look at a checkpoint."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, subcommand

from models import checkpoint
from models.checkpoint import CheckpointError
from models.export import export_onnx
from models.train import TrainConfig, train
from models.train_mixture import TrainMixtureConfig, train_mixture


@dataclass(frozen=True)
class Export:
    """Write model.onnx into a checkpoint folder and its hash into the manifest."""

    checkpoint: Positional[Path]
    """Folder made by `python -m models train`."""


@dataclass(frozen=True)
class Describe:
    """Print a checkpoint's manifest, after verifying its files."""

    checkpoint: Positional[Path] = checkpoint.PRETRAINED / "desk"
    """Checkpoint folder; the bundled desk policy if not given."""


def main() -> None:
    """Entry point."""
    command = tyro.cli(
        Annotated[TrainConfig, subcommand("train", description="Train a desk policy, or go on.")]
        | Annotated[
            TrainMixtureConfig,
            subcommand(
                "train-mixture",
                description=(
                    "Train the small denoising network of the sampler and guidance sweeps, for 2-D "
                    "points with a condition, or go on. A bundled one for the built-in "
                    "target is there already; give --mixture for a target of your own. Afterwards: "
                    "models.train_mixture.load_mixture_network(Path(OUT))."
                ),
            ),
        ]
        | Annotated[Export, subcommand("export")]
        | Annotated[Describe, subcommand("describe")],
        prog="python -m models",
    )
    try:
        match command:
            case TrainConfig():
                manifest = train(command)
                sys.stderr.write(f"{command.out} holds {manifest.model_id}\n")
            case TrainMixtureConfig():
                trained = train_mixture(command)
                sys.stderr.write(
                    f"{command.out} holds a network for {trained.mixture.num_conditions} "
                    f"conditions ({trained.diffusion.prediction_type})\n"
                )
            case Export():
                manifest, policy = checkpoint.load(command.checkpoint)
                export_onnx(policy, command.checkpoint / checkpoint.ONNX)
                checkpoint.write_manifest(command.checkpoint, manifest)
                sys.stderr.write(f"wrote {command.checkpoint / checkpoint.ONNX}\n")
            case Describe():
                manifest, _ = checkpoint.load(command.checkpoint)
                sys.stdout.write(manifest.to_json())
    except (CheckpointError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")


if __name__ == "__main__":
    main()
