"""What every training run is: the loss, the loop, the average of the weights, exact resuming.

Denoising score matching with classifier-free guidance dropout (Ho & Salimans 2022, algorithm 1).
Every random draw of update n comes from a generator seeded with (seed, n), so a run that is
interrupted and resumed ends with the very same weights. What is learnt, and from what, is said by
`models.train` (the desk) and `models.train_mixture` (points in the plane).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from tqdm import tqdm

from models.guided_step import PredictionType
from models.networks.protocol import DenoisingNetwork
from models.policy import DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """What a training run is asked for, whatever it learns.

    Attributes:
        out: folder to write; an interrupted run in it is resumed.
        num_updates: optimiser steps.
        batch_size: samples an update.
        learning_rate: peak; warm-up over the first 500 updates, then a cosine to zero.
        weight_decay: of AdamW.
        ema_decay: of the weight average that is the result.
        prediction_type: what the network learns to output.
        seed: of initial weights and every draw.
        save_every: updates between two saves of the resumable state.
    """

    out: Path
    num_updates: int
    batch_size: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ema_decay: float = 0.999
    prediction_type: PredictionType = "sample"
    seed: int = 0
    save_every: int = 1_000

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("num_updates", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)

    def identity(self) -> dict[str, object]:
        """What the weights depend on: all but where they go and how often they are saved."""
        fields = dataclasses.asdict(self)
        del fields["out"], fields["save_every"]
        return fields


def check_dropout(name: str, value: float) -> None:
    """Refuse a share of dropped conditions that leaves none.

    Raises:
        ValueError: not 0 <= value < 1; the message begins with `name`.
    """
    if not 0 <= value < 1:
        msg = f"{name}: expected 0 <= p < 1, got {value}"
        raise ValueError(msg)


def denoising_loss(
    network: DenoisingNetwork,
    condition: Tensor,
    x0: Tensor,
    diffusion: DiffusionConfig,
    *,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the prediction, over random timesteps and noise.

    Args:
        network: in training mode.
        condition: float32 [n, film_dim], its condition parts, with some instructions dropped.
        x0: float32 [n, horizon, action_dim], clean samples in normalised units.
        diffusion: noise schedule, and which of x0, eps and v is to be predicted.
        draws: (timestep, noise) draws for each sample.
        generator: of every draw made here.

    Returns:
        A scalar.
    """
    condition, x0 = condition.repeat_interleave(draws, 0), x0.repeat_interleave(draws, 0)
    t = torch.randint(diffusion.num_timesteps, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    alpha_bar = torch.from_numpy(diffusion.alpha_bar)[t].float()[:, None, None]
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    output = network.denoise(signal * x0 + noise * eps, network.time_part(t) + condition)
    match diffusion.prediction_type:
        case "sample":
            target = x0
        case "epsilon":
            target = eps
        case "v":
            target = signal * eps - noise * x0
    return F.mse_loss(output, target)


class TrainingRun:
    """One run in `config.out`/training: a module, the average of its weights, the optimiser."""

    def __init__(
        self, module: nn.Module, config: TrainerConfig, identity: Mapping[str, object]
    ) -> None:
        """Begin a run, or load the one that was interrupted there.

        Args:
            module: to train, with the initial weights of a new run.
            config: how.
            identity: what the run depends on, as JSON types: two runs that agree in it end with
                equal weights.

        Raises:
            ValueError: the folder holds a run with another identity.
        """
        self._started = time.monotonic()
        self._module = module
        self._config = config
        self._identity = identity
        self._folder = config.out / "training"
        self._average = {name: p.detach().clone() for name, p in module.state_dict().items()}
        self._optimizer = torch.optim.AdamW(
            module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._update = 0
        self._elapsed_before_s = self._resume()

    @property
    def finished(self) -> bool:
        """Whether every update has been made."""
        return self._update == self._config.num_updates

    def train(self, loss_at: Callable[[int, torch.Generator], Tensor]) -> dict[str, object]:
        """Make the updates that are left and leave the averaged weights in the module.

        Args:
            loss_at: (update, generator of its draws) → scalar loss of the module.

        Returns:
            Figures of the run, as JSON types: the last loss, seconds and threads used.
        """
        config, module = self._config, self._module
        losses: deque[float] = deque(maxlen=1000)
        bar = tqdm(total=config.num_updates, initial=self._update, desc="training", unit="update")
        with bar:
            while not self.finished:
                generator = torch.Generator().manual_seed((config.seed << 32) + self._update)
                loss = loss_at(self._update, generator)
                self._optimizer.param_groups[0]["lr"] = learning_rate(self._update, config)
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                self._optimizer.step()
                self._update += 1
                self._follow()
                losses.append(loss.item())
                bar.update()
                if self._update % 100 == 0:
                    bar.set_postfix(loss=f"{np.mean(losses):.4f}")
                if self._update % config.save_every == 0:
                    self._save()
        elapsed_s = self._save()
        module.load_state_dict(self._average)
        return {
            "loss_last": float(np.mean(losses)) if losses else None,
            "elapsed_s": round(elapsed_s, 1),
            "threads": torch.get_num_threads(),
        }

    def _follow(self) -> None:
        """Exponential moving average; starts quickly, so early updates are forgotten."""
        decay = min(self._config.ema_decay, (1 + self._update) / (10 + self._update))
        for name, value in self._module.state_dict().items():
            self._average[name].lerp_(value, 1 - decay)

    def _save(self) -> float:
        """Write the resumable state; return the seconds that the run has taken so far."""
        moments = {
            f"optimizer.{i}.{key}": value
            for i, state in self._optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        # "policy." whatever the module is: desk runs begun by older versions can go on
        tensors = {
            "update": torch.tensor(self._update),
            **{f"policy.{name}": value for name, value in self._module.state_dict().items()},
            **{f"ema.{name}": value for name, value in self._average.items()},
            **moments,
        }
        path = self._folder / "state.safetensors"
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(path)
        elapsed_s = self._elapsed_before_s + time.monotonic() - self._started
        self._write_run(elapsed_s)
        return elapsed_s

    def _resume(self) -> float:
        """Load an interrupted run's state if there is one; return the seconds it had used."""
        run = self._folder / "run.json"
        if not run.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write_run(0.0)
            return 0.0
        recorded = json.loads(run.read_text())
        if recorded["config"] != self._identity:
            before, now = recorded["config"], self._identity
            changed = {
                key: (before.get(key), now.get(key))
                for key in {**before, **now}
                if before.get(key) != now.get(key)
            }
            msg = (
                f"{self._folder}: holds a run with another configuration, (before, now): "
                f"{changed}; choose another --out, or delete the folder"
            )
            raise ValueError(msg)
        if (self._folder / "state.safetensors").exists():
            self._load(load_file(self._folder / "state.safetensors"))
        return float(recorded["elapsed_s"])

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        self._update = int(tensors["update"])
        self._module.load_state_dict(_under("policy.", tensors))
        self._average = _under("ema.", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})

    def _write_run(self, elapsed_s: float) -> None:
        partial = self._folder / "run.json.partial"
        partial.write_text(json.dumps({"config": self._identity, "elapsed_s": elapsed_s}))
        partial.replace(self._folder / "run.json")


def learning_rate(update: int, config: TrainerConfig) -> float:
    """Linear warm-up, then half a cosine that reaches zero after the last update."""
    warmup = min(500, config.num_updates // 10 + 1)
    progress = min(update / config.num_updates, 1.0)
    decay = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * min((update + 1) / warmup, decay)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
