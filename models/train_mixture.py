"""Training of the lesson's network on a 2-D mixture: a mixture in, a small folder of weights out.

How it is trained (loop, loss, resuming) is in `models.trainer`, the same for the desk policy.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from models import checkpoint
from models.checkpoint import CheckpointError
from models.guided_step import PredictionType
from models.mixtures import QUADRANTS, Mixture
from models.networks.concat_mlp import ConcatMlp, ConcatMlpConfig
from models.policy import DiffusionConfig
from models.trainer import TrainerConfig, TrainingRun, check_dropout, denoising_loss

CARD = "trained_mixture.json"
FORMAT = 1
BUNDLED = checkpoint.PRETRAINED / "quadrants"
"""The network that ships with the package, trained on `QUADRANTS`."""


@dataclass(frozen=True, kw_only=True)
class TrainMixtureConfig(TrainerConfig):
    """What `python -m models train-mixture` takes.

    Attributes:
        out: folder to write; an interrupted run in it is resumed.
        mixture: JSON file {"modes": [condition][mode][2], "std": number}, all within -1..1; the
            built-in target (three modes in each quadrant) if not given.
        num_updates: optimiser steps.
        batch_size: points an update, drawn afresh every time.
        condition_dropout: share of points whose condition becomes the null embedding.
        hidden: width of the two hidden layers.
        embedding_dim: width of the time embedding and of the condition embedding.
    """

    mixture: Path | None = None
    num_updates: int = 40_000
    batch_size: int = 1_024
    learning_rate: float = 4e-3
    prediction_type: PredictionType = "v"
    save_every: int = 5_000
    condition_dropout: float = 0.1
    hidden: int = 128
    embedding_dim: int = 32

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        check_dropout("condition_dropout", self.condition_dropout)


@dataclass(frozen=True)
class TrainedMixture:
    """A trained network and what it was trained on.

    Attributes:
        network: in evaluation mode, its parameters take no gradients.
        mixture: the target.
        diffusion: the process; float samples of it are points in the mixture's own coordinates.
    """

    network: ConcatMlp
    mixture: Mixture
    diffusion: DiffusionConfig


def trained_network(mixture: Mixture, folder: Path) -> TrainedMixture:
    """A network for `mixture`: the bundled one, the one in `folder`, or one trained into it now.

    Args:
        mixture: the target.
        folder: where to look, and to train with the default settings; not touched if the bundled
            network fits. An interrupted run in it goes on.

    Raises:
        CheckpointError: a finished network in `folder` is unusable.
        ValueError: an unfinished run in `folder` has another mixture or other settings.
    """
    bundled = load_mixture_network(BUNDLED)
    if bundled.mixture == mixture:
        return bundled
    if (folder / CARD).exists():
        found = load_mixture_network(folder)
        if found.mixture == mixture:
            return found
    return _train(mixture, TrainMixtureConfig(out=folder))


def train_mixture(config: TrainMixtureConfig) -> TrainedMixture:
    """Train a network, or go on with an interrupted run, and write it to `config.out`.

    Raises:
        FileNotFoundError, ValueError: unusable mixture file.
        ValueError: `out` holds a run with another configuration.
    """
    return _train(Mixture.load(config.mixture) if config.mixture else QUADRANTS, config)


def _train(mixture: Mixture, config: TrainMixtureConfig) -> TrainedMixture:
    torch.manual_seed(config.seed)
    network = ConcatMlp(
        ConcatMlpConfig(mixture.num_conditions, config.hidden, config.embedding_dim)
    ).train()
    diffusion = DiffusionConfig(prediction_type=config.prediction_type)
    identity = {**config.identity(), "mixture": _mixture_to_json(mixture)}
    run = TrainingRun(network, config, identity)
    if run.finished and (config.out / CARD).exists():
        return load_mixture_network(config.out)  # nothing is written again

    def loss_at(update: int, generator: torch.Generator) -> Tensor:
        points, conditions = draw_batch(mixture, config, update)
        drop = torch.rand(len(points), generator=generator) < config.condition_dropout
        one_hot = F.one_hot(conditions, mixture.num_conditions).float()
        condition = network.condition_part(torch.empty(len(points), 0), one_hot, drop)
        return denoising_loss(network, condition, points, diffusion, draws=1, generator=generator)

    figures = run.train(loss_at)
    trained = TrainedMixture(network.eval().requires_grad_(requires_grad=False), mixture, diffusion)
    _save(config.out, trained, {**config.identity(), **figures})
    return trained


def draw_batch(mixture: Mixture, config: TrainMixtureConfig, update: int) -> tuple[Tensor, Tensor]:
    """Fresh points for one update, from a stream of (seed, update).

    Returns:
        (float32 [batch_size, 1, 2], their conditions int64 [batch_size]), by rising condition.
    """
    rng = np.random.default_rng((config.seed, update, 1))
    conditions = np.sort(rng.integers(mixture.num_conditions, size=config.batch_size))
    counts = np.bincount(conditions, minlength=mixture.num_conditions)
    points = np.concatenate([mixture.draw(i, count, rng) for i, count in enumerate(counts)])
    return torch.from_numpy(points[:, None].astype(np.float32)), torch.from_numpy(conditions)


def _save(folder: Path, trained: TrainedMixture, training: dict[str, object]) -> None:
    """Write weights, then the card with their hash; each replaces an older one in one piece."""
    partial = folder / (checkpoint.WEIGHTS + ".partial")
    save_file(trained.network.state_dict(), partial)
    partial.chmod(0o644)  # safetensors leaves it to its owner alone
    partial.replace(folder / checkpoint.WEIGHTS)
    card = {
        "format": FORMAT,
        "mixture": _mixture_to_json(trained.mixture),
        "network": dataclasses.asdict(trained.network.config),
        "diffusion": dataclasses.asdict(trained.diffusion),
        "training": {name: value for name, value in training.items() if name != "mixture"},
        # other commands train one too, when they need it
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "sha256": checkpoint.file_sha256(folder / checkpoint.WEIGHTS),
    }
    partial = folder / (CARD + ".partial")
    partial.write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    partial.replace(folder / CARD)


def load_mixture_network(folder: Path) -> TrainedMixture:
    """A trained network, its weights verified against the card.

    Raises:
        CheckpointError: a file is missing, altered, or does not fit the other; the message names
            it.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text("utf-8"))
        if card["format"] != FORMAT:
            msg = f"format: expected {FORMAT}, got {card['format']!r}"
            raise ValueError(msg)
        mixture = _mixture_from_json(card["mixture"])
        network = ConcatMlp(ConcatMlpConfig(**card["network"]))
        diffusion = DiffusionConfig(**card["diffusion"])
        expected = card["sha256"]
    except FileNotFoundError:
        msg = f"{path}: not found; expected a folder made by: python -m models train-mixture"
        raise CheckpointError(msg) from None
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{path}: not the card of a trained mixture: {error!r}"
        raise CheckpointError(msg) from error
    weights = folder / checkpoint.WEIGHTS
    if not weights.is_file():
        msg = f"{weights}: not found, but {CARD} is there"
        raise CheckpointError(msg)
    found = checkpoint.file_sha256(weights)
    if found != expected:
        msg = f"{weights}: altered or truncated: expected sha256 {expected}, got {found}"
        raise CheckpointError(msg)
    try:
        network.load_state_dict(load_file(weights))
    except RuntimeError as error:
        msg = f"{weights}: does not fit the network of {CARD}: {error}"
        raise CheckpointError(msg) from error
    return TrainedMixture(network.eval().requires_grad_(requires_grad=False), mixture, diffusion)


def _mixture_to_json(mixture: Mixture) -> dict[str, Any]:
    """As `Mixture.load` reads it; lists, since JSON never gives back a tuple."""
    modes = [[list(mode) for mode in modes] for modes in mixture.modes]
    return {"modes": modes, "std": mixture.std}


def _mixture_from_json(fields: dict[str, Any]) -> Mixture:
    modes = tuple(tuple((float(x), float(y)) for x, y in modes) for modes in fields["modes"])
    return Mixture(modes, float(fields["std"]))
