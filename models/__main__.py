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
from models.export import export_encoder, export_step
from models.train import TrainConfig, train
from models.train_mixture import TrainMixtureConfig, train_mixture
from models.train_pusht import TrainPushtConfig


@dataclass(frozen=True)
class Export:
    """Write model.onnx and encoder.onnx into a checkpoint folder and list them in its manifest."""

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
            TrainPushtConfig,
            subcommand(
                "train-pusht",
                description="Train a Push-T policy on human demonstrations, or go on.",
            ),
        ]
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
            case TrainConfig() | TrainPushtConfig():
                manifest = train(command)
                sys.stderr.write(f"{command.out} holds {manifest.model_id}\n")
            case TrainMixtureConfig():
                trained = train_mixture(command)
                sys.stderr.write(
                    f"{command.out} holds a network for {trained.mixture.num_conditions} "
                    f"conditions ({trained.diffusion.prediction_type})\n"
                )
            case Export():
                folder = command.checkpoint
                checkpoint.discard_exports(folder)  # damaged ones can thus be repaired
                manifest, policy = checkpoint.load(folder)
                export_step(policy, folder / checkpoint.ONNX)
                export_encoder(policy, folder / checkpoint.ENCODER_ONNX)
                checkpoint.write_manifest(folder, manifest)
                sys.stderr.write(f"wrote {', '.join(checkpoint.EXPORTS)} into {folder}\n")
            case Describe():
                manifest, _ = checkpoint.load(command.checkpoint)
                sys.stdout.write(manifest.to_json())
    except (CheckpointError, FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")


if __name__ == "__main__":
    main()
