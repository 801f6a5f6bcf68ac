"""`python -m models …`: train a policy or a 2-D toy, export it to ONNX, describe networks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, subcommand

from models import checkpoint
from models.checkpoint import CheckpointError
from models.describe import EXPLANATION, camera_table, cost_table, default_configs
from models.export import export_graphs
from models.train import TrainConfig, train
from models.train_mixture import TrainMixtureConfig, train_mixture
from models.train_pusht import TrainPushtConfig


@dataclass(frozen=True)
class Export:
    """Write model.onnx and encoder.onnx into a checkpoint folder and list them in its manifest."""

    checkpoint: Positional[Path]
    """Folder made by `python -m models train`."""
    int8: bool = False
    """Write model_int8.onnx, too: the step with int8 weights, for `--backend onnx-int8`."""


@dataclass(frozen=True)
class Describe:
    """Print what networks cost: parameters, operations of a step and of a condition, shapes.

    Without a checkpoint: every kind of network in its default sizes, for the shapes of the desk
    and of Push-T. With one: its own network, after verifying its files. What else is known of a
    checkpoint (robot, steps, training) is plain JSON in its manifest.json.

    A step of a larger network takes longer, so fewer fit a deadline: compare the step's operations
    of the network that you mean to train with those of one that you have timed.

    Example: python -m models describe runs/desk
    """

    checkpoint: Positional[Path | None] = None
    """Folder made by `python -m models train`."""


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
                export_graphs(policy, folder, int8=command.int8)
                written = checkpoint.write_manifest(folder, manifest).files
                names = [name for name in checkpoint.EXPORTS if name in written]
                sys.stderr.write(f"wrote {', '.join(names)} into {folder}\n")
            case Describe():
                if command.checkpoint:
                    manifest, _ = checkpoint.load(command.checkpoint)
                    tables = [cost_table(manifest.model_id, [manifest.network])]
                    if manifest.vision:
                        tables.append(camera_table(manifest.spec, manifest.vision))
                else:
                    tables = [cost_table(*item) for item in default_configs().items()]
                sys.stdout.write("\n".join([*tables, EXPLANATION]))
    except (CheckpointError, FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")


if __name__ == "__main__":
    main()
