"""The trainer, start to end: demonstrations and phrasings in, a checkpoint folder out.

Denoising score matching with classifier-free guidance dropout (Ho & Salimans 2022, algorithm 1).
Every random draw of step n comes from a generator seeded with (seed, n), so a run that is
interrupted and resumed ends with the very same weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from tqdm import tqdm

from client.sims.desk import phrasings as desk_phrasings
from client.sims.desk.spec import DESK_SPEC
from models import checkpoint
from models.dataset import Demonstrations, cut_windows
from models.instruction_encoder import (
    INSTRUCTION_DIM,
    PACKAGE,
    InstructionEncoder,
    weights_sha256,
)
from models.networks.film_mlp import FilmMlpConfig
from models.policy import DiffusionConfig, DiffusionPolicy, observation_dim

UNTUNED_STEPS = 10
"""Step count of a checkpoint that has not been measured."""


@dataclass(frozen=True)
class TrainConfig:
    """What `python -m models train` takes.

    Attributes:
        demos: recording made by `python -m client.sims.desk record`.
        out: checkpoint folder to write; an interrupted run in it is resumed.
        num_updates: optimiser steps.
        batch_size: windows an update.
        draws_per_window: (timestep, noise) draws for each window of a batch.
        learning_rate: peak; warm-up over the first 500 updates, then a cosine to zero.
        weight_decay: of AdamW.
        ema_decay: of the weight average that becomes the checkpoint.
        instruction_dropout: share of windows whose instruction becomes the null embedding.
        instruction_noise: standard deviation added to projected instructions, where the phrasings
            of one task have 1: stands for the wordings that nobody has written down.
        prediction_type: what the network learns to output.
        seed: of initial weights and every draw.
        save_every: updates between two saves of the resumable state.
    """

    demos: Path
    out: Path
    num_updates: int = 12_000
    batch_size: int = 256
    draws_per_window: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ema_decay: float = 0.999
    instruction_dropout: float = 0.1
    instruction_noise: float = 0.7
    prediction_type: Literal["sample", "v", "epsilon"] = "sample"
    seed: int = 0
    save_every: int = 1_000

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("num_updates", "batch_size", "draws_per_window", "save_every"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if not 0 <= self.instruction_dropout < 1:
            msg = f"instruction_dropout: expected 0 <= p < 1, got {self.instruction_dropout}"
            raise ValueError(msg)


class Batches:
    """Training windows and instruction embeddings as tensors; draws batches by update number."""

    def __init__(
        self,
        demos: Demonstrations,
        phrasings: Mapping[str, list[str]],
        policy: DiffusionPolicy,
        config: TrainConfig,
    ) -> None:
        """Fit the policy's normalisers and embed every phrasing once."""
        self.config = config
        windows = cut_windows(demos.episode_ends, policy.spec)
        self._history = torch.from_numpy(windows.history)
        self._future = torch.from_numpy(windows.future)
        state, action = torch.from_numpy(demos.state), torch.from_numpy(demos.action)
        policy.observation_normalizers["state"].fit_standard(state)  # type: ignore[operator]
        policy.action_normalizer.fit_range(action)

        tasks = list(phrasings)
        encoder = InstructionEncoder()
        self._embeddings = [
            torch.from_numpy(_encode_all(encoder, phrasings[task], task)) for task in tasks
        ]
        policy.instruction_projection.fit(self._embeddings)
        task_of_episode = np.array([tasks.index(task) for task in demos.task])
        self._task = torch.from_numpy(task_of_episode[windows.episode])
        self._state = state
        self._action = policy.action_normalizer(action)

    def draw(self, update: int) -> tuple[Tensor, Tensor, Tensor]:
        """(state [n, obs_steps, dim], embedding [n, INSTRUCTION_DIM], chunk [n, horizon, dim])."""
        rng = np.random.default_rng((self.config.seed, update, 1))
        index = torch.from_numpy(rng.integers(len(self._history), size=self.config.batch_size))
        which = torch.from_numpy(rng.random(self.config.batch_size, np.float32))
        instruction = torch.empty(len(index), INSTRUCTION_DIM)
        for task, embeddings in enumerate(self._embeddings):
            rows = self._task[index] == task
            instruction[rows] = embeddings[(which[rows] * len(embeddings)).long()]
        return self._state[self._history[index]], instruction, self._action[self._future[index]]


def _encode_all(
    encoder: InstructionEncoder, texts: list[str], task: str
) -> npt.NDArray[np.float32]:
    starts = tqdm(range(0, len(texts), 128), desc=f"embedding {task}", leave=False)
    return np.concatenate([encoder.encode(texts[i : i + 128]) for i in starts])


def loss_of(
    policy: DiffusionPolicy,
    batch: tuple[Tensor, Tensor, Tensor],
    config: TrainConfig,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the prediction, over random timesteps and noise.

    Args:
        policy: in training mode.
        batch: what `Batches.draw` returns.
        config: dropout, noise and draws.
        generator: of every draw made here.

    Returns:
        A scalar.
    """
    state, instruction, x0 = batch
    rows = len(state)
    drop = torch.rand(rows, generator=generator) < config.instruction_dropout
    projected = policy.instruction_projection(instruction)
    jitter = config.instruction_noise * torch.randn(projected.shape, generator=generator)
    condition = policy.network.condition_part(
        policy.flatten_observation({"state": state}), projected + jitter, drop
    )
    draws = config.draws_per_window
    condition, x0 = condition.repeat_interleave(draws, 0), x0.repeat_interleave(draws, 0)
    t = torch.randint(policy.diffusion.num_timesteps, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    alpha_bar = torch.from_numpy(policy.diffusion.alpha_bar)[t].float()[:, None, None]
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    output = policy.network.denoise(
        signal * x0 + noise * eps, policy.network.time_part(t) + condition
    )
    match policy.diffusion.prediction_type:
        case "sample":
            target = x0
        case "epsilon":
            target = eps
        case "v":
            target = signal * eps - noise * x0
    return F.mse_loss(output, target)


def _learning_rate(update: int, config: TrainConfig) -> float:
    warmup = min(500, config.num_updates // 10 + 1)
    progress = min(update / config.num_updates, 1.0)
    decay = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * min((update + 1) / warmup, decay)


class _TrainingState:
    """Weights, their average and the optimiser's moments, saved as safetensors for resuming."""

    def __init__(self, policy: DiffusionPolicy, config: TrainConfig) -> None:
        self.policy = policy
        self.ema = {name: p.detach().clone() for name, p in policy.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            policy.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.update = 0

    def average(self, decay: float) -> None:
        """Exponential moving average; starts quickly, so early updates are forgotten."""
        decay = min(decay, (1 + self.update) / (10 + self.update))
        for name, value in self.policy.state_dict().items():
            self.ema[name].lerp_(value, 1 - decay)

    def save(self, path: Path) -> None:
        moments = {
            f"optimizer.{i}.{key}": value
            for i, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        tensors = {
            "update": torch.tensor(self.update),
            **{f"policy.{name}": value for name, value in self.policy.state_dict().items()},
            **{f"ema.{name}": value for name, value in self.ema.items()},
            **moments,
        }
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        tensors = load_file(path)
        self.update = int(tensors["update"])
        self.policy.load_state_dict(_under("policy.", tensors))
        self.ema = _under("ema.", tensors)
        state = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**state, "state": moments})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def train(config: TrainConfig) -> checkpoint.Manifest:
    """Train a desk policy, or go on with an interrupted run, and write the checkpoint.

    Raises:
        FileNotFoundError, ValueError: unusable demonstrations.
        ValueError: `out` holds a run with another configuration.
    """
    started = time.monotonic()
    # lets the processor multiply in bf16 where it can; weights and sums stay in float32
    torch.set_float32_matmul_precision("medium")
    demos = Demonstrations.load(config.demos)
    torch.manual_seed(config.seed)
    spec = DESK_SPEC
    phrasings = desk_phrasings.known()
    network = FilmMlpConfig(
        spec.horizon, spec.action_dim, observation_dim(spec), instruction_dim=len(phrasings) - 1
    )
    diffusion = DiffusionConfig(prediction_type=config.prediction_type)
    policy = DiffusionPolicy(spec, network, diffusion).train()
    batches = Batches(demos, phrasings, policy, config)
    state = _TrainingState(policy, config)
    folder = config.out / "training"
    identity = _comparable(config, phrasings)
    elapsed_before = _resume(state, folder, identity)
    if state.update == config.num_updates and (config.out / checkpoint.MANIFEST).exists():
        return checkpoint.read_manifest(config.out)  # finished before; nothing is written again

    losses: deque[float] = deque(maxlen=1000)
    bar = tqdm(total=config.num_updates, initial=state.update, desc="training", unit="update")
    with bar:
        while state.update < config.num_updates:
            generator = torch.Generator().manual_seed((config.seed << 32) + state.update)
            loss = loss_of(policy, batches.draw(state.update), config, generator)
            state.optimizer.param_groups[0]["lr"] = _learning_rate(state.update, config)
            state.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(policy.network.parameters(), 1.0)
            state.optimizer.step()
            state.update += 1
            state.average(config.ema_decay)
            losses.append(loss.item())
            bar.update()
            if state.update % 100 == 0:
                bar.set_postfix(loss=f"{np.mean(losses):.4f}")
            if state.update % config.save_every == 0:
                _save_run(state, folder, elapsed_before + time.monotonic() - started)

    elapsed_s = elapsed_before + time.monotonic() - started
    _save_run(state, folder, elapsed_s)
    policy.load_state_dict(state.ema)
    manifest = checkpoint.Manifest(
        model_id=f"{spec.task}-{network.width}x{network.num_blocks}-seed{config.seed}",
        spec=spec,
        network=network,
        diffusion=diffusion,
        defaults=checkpoint.SamplingDefaults(),
        # nothing is known of fewer steps before `python -m benchmarks tune` has measured them
        min_steps=UNTUNED_STEPS,
        max_useful_steps=UNTUNED_STEPS,
        instruction_encoder={"package": PACKAGE, "sha256": weights_sha256()},
        command=shlex.join(["python", "-m", "models", *sys.argv[1:]]),
        training={
            **identity,
            "episodes": len(demos.task),
            "windows": len(demos.state),
            "loss_last": float(np.mean(losses)) if losses else None,
            "elapsed_s": round(elapsed_s, 1),
            "threads": torch.get_num_threads(),
        },
    )
    return checkpoint.save(config.out, manifest, policy.eval())


def _comparable(config: TrainConfig, phrasings: Mapping[str, list[str]]) -> dict[str, object]:
    """What a run depends on, as JSON types: two runs that agree in it end with equal weights."""
    fields = dataclasses.asdict(config)
    del fields["out"], fields["save_every"]
    words = json.dumps(phrasings).encode()
    return {
        **fields,
        "demos": config.demos.name,
        "demos_sha256": checkpoint.file_sha256(config.demos),
        "phrasings_sha256": hashlib.sha256(words).hexdigest(),
    }


def _resume(state: _TrainingState, folder: Path, identity: Mapping[str, object]) -> float:
    """Load an interrupted run's state if there is one; return the seconds it had used."""
    run = folder / "run.json"
    if not run.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_run(folder, identity, 0.0)
        return 0.0
    recorded = json.loads(run.read_text())
    if recorded["config"] != identity:
        changed = {
            key: (recorded["config"].get(key), value)
            for key, value in identity.items()
            if recorded["config"].get(key) != value
        }
        msg = (
            f"{folder}: holds a run with another configuration, (before, now): {changed}; "
            "choose another --out, or delete the folder"
        )
        raise ValueError(msg)
    if (folder / "state.safetensors").exists():
        state.load(folder / "state.safetensors")
    return float(recorded["elapsed_s"])


def _save_run(state: _TrainingState, folder: Path, elapsed_s: float) -> None:
    state.save(folder / "state.safetensors")
    run = json.loads((folder / "run.json").read_text())
    _write_run(folder, run["config"], elapsed_s)


def _write_run(folder: Path, identity: Mapping[str, object], elapsed_s: float) -> None:
    partial = folder / "run.json.partial"
    partial.write_text(json.dumps({"config": identity, "elapsed_s": elapsed_s}))
    partial.replace(folder / "run.json")
