"""Training of a policy: demonstrations and phrasings in, a checkpoint folder out.

What all tasks share, and the desk (`models.train_pusht` has Push-T). How it is trained (loop, loss,
resuming) is in `models.trainer`.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from client.sims.desk import phrasings as desk_phrasings
from client.sims.desk.spec import DESK_IMAGE_SPEC, DESK_SPEC
from client.specs import PolicySpec
from models import checkpoint
from models.dataset import Demonstrations, cut_windows
from models.instruction_encoder import (
    INSTRUCTION_DIM,
    PACKAGE,
    InstructionEncoder,
    weights_sha256,
)
from models.networks.config import NetworkConfig
from models.networks.film_mlp import FilmMlpConfig
from models.networks.kinds import config_class, config_to_json
from models.networks.sizes import sized_config
from models.policy import DiffusionConfig, DiffusionPolicy
from models.trainer import TrainerConfig, TrainingRun, check_dropout, denoising_loss
from models.vision import VisionConfig, cameras, random_crops, vision_to_json

UNTUNED_STEPS = 10
"""Step count of a checkpoint that has not been measured."""


@dataclass(frozen=True)
class TrainingTask:
    """What there is to learn.

    Attributes:
        spec: what the policy takes and gives.
        phrasings: task → instructions that ask for it.
        demos: episodes, each of one of these tasks.
        observation: by the names of the specification, what was seen at each step, [steps, …].
        identity: what the demonstrations are, as JSON types: name and hash.
        newest: for an array of the observation that is not as long as the rest, since a camera is
            slower than the control loop: int64 [steps], which row of it each step has seen last.
    """

    spec: PolicySpec
    phrasings: Mapping[str, list[str]]
    demos: Demonstrations
    observation: Mapping[str, npt.NDArray[Any]]
    identity: Mapping[str, object]
    newest: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PolicyTrainConfig(TrainerConfig, ABC):
    """How a policy is trained, whatever the task; a task says what its demonstrations are.

    Attributes:
        out: checkpoint folder to write; an interrupted run in it is resumed.
        observation: what the policy sees: the numbers of the state, or the pictures of a camera.
        num_updates: optimiser steps.
        network: kind of network; see `models.networks.kinds`.
        sizes: its sizes, as NAME=NUMBER or NAME=NUMBER,NUMBER; its defaults for the rest.
        batch_size: windows an update.
        draws_per_window: (timestep, noise) draws for each window of a batch.
        instruction_dropout: share of windows whose instruction becomes the null embedding.
        instruction_noise: standard deviation added to projected instructions, where the phrasings
            of one task have 1: stands for the wordings that nobody has written down.
    """

    observation: Literal["state", "image"] = "state"
    network: str = FilmMlpConfig.kind
    sizes: tuple[str, ...] = ()
    num_updates: int = 12_000
    batch_size: int = 256
    draws_per_window: int = 4
    instruction_dropout: float = 0.1
    instruction_noise: float = 0.7

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        if self.draws_per_window < 1:
            msg = f"draws_per_window: expected at least 1, got {self.draws_per_window}"
            raise ValueError(msg)
        check_dropout("instruction_dropout", self.instruction_dropout)

    def identity(self) -> dict[str, object]:
        """See `TrainerConfig.identity`; the sizes of a camera encoder tell what is seen."""
        fields = super().identity()
        del fields["observation"]
        return fields

    @abstractmethod
    def task(self) -> TrainingTask:
        """Read the demonstrations.

        Raises:
            FileNotFoundError, ValueError: unusable demonstrations.
        """


@dataclass(frozen=True, kw_only=True)
class TrainConfig(PolicyTrainConfig):
    """What `python -m models train` takes.

    Attributes:
        demos: recording made by `python -m client.sims.desk record`; of pictures with its option
            --robot desk_image.
    """

    demos: Path

    def task(self) -> TrainingTask:
        """See `PolicyTrainConfig.task`."""
        phrasings = desk_phrasings.known()
        identity = {
            "demos": self.demos.name,
            "demos_sha256": checkpoint.file_sha256(self.demos),
        }
        match self.observation:
            case "state":
                demos = Demonstrations.load(self.demos)
                return TrainingTask(DESK_SPEC, phrasings, demos, {"state": demos.state}, identity)
            case "image":
                demos = Demonstrations.load(self.demos, state="hand")
                with np.load(self.demos, allow_pickle=False) as file:
                    seen = {"camera": file["camera"], "hand": demos.state}
                    newest = {"camera": file["camera_at"]}
                return TrainingTask(DESK_IMAGE_SPEC, phrasings, demos, seen, identity, newest)


class Batches:
    """Training windows and instruction embeddings as tensors; draws batches by update number."""

    def __init__(
        self,
        task: TrainingTask,
        policy: DiffusionPolicy,
        config: PolicyTrainConfig,
    ) -> None:
        """Fit the policy's normalisers and embed every phrasing once."""
        self.config = config
        demos, phrasings = task.demos, task.phrasings
        windows = cut_windows(demos.episode_ends, policy.spec)
        self._history = torch.from_numpy(windows.history)
        self._future = torch.from_numpy(windows.future)
        self._seen = {name: torch.from_numpy(seen) for name, seen in task.observation.items()}
        self._newest = {name: torch.from_numpy(rows) for name, rows in task.newest.items()}
        self._cameras = tuple(cameras(task.spec))
        for name, normalizer in policy.observation_normalizers.items():
            normalizer.fit_standard(self._seen[name])  # type: ignore[operator]
        action = torch.from_numpy(demos.action)
        policy.action_normalizer.fit_range(action)

        names = list(phrasings)
        encoder = InstructionEncoder()
        self._embeddings = [
            torch.from_numpy(_encode_all(encoder, phrasings[name], name)) for name in names
        ]
        policy.instruction_projection.fit(self._embeddings)
        task_of_episode = np.array([names.index(name) for name in demos.task])
        self._task = torch.from_numpy(task_of_episode[windows.episode])
        self._vision = policy.vision
        self._action = policy.action_normalizer(action)

    def draw(self, update: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """A batch of windows.

        Returns:
            Observations: name → [n, obs_steps, ...], of pictures a random part each.
            Embeddings, float32 [n, INSTRUCTION_DIM].
            Chunks, float32 [n, horizon, action_dim], normalised.
        """
        rng = np.random.default_rng((self.config.seed, update, 1))
        index = torch.from_numpy(rng.integers(len(self._history), size=self.config.batch_size))
        which = torch.from_numpy(rng.random(self.config.batch_size, np.float32))
        instruction = torch.empty(len(index), INSTRUCTION_DIM)
        for task, embeddings in enumerate(self._embeddings):
            rows = self._task[index] == task
            instruction[rows] = embeddings[(which[rows] * len(embeddings)).long()]
        history = self._history[index]
        observation = {
            name: seen[self._newest[name][history] if name in self._newest else history]
            for name, seen in self._seen.items()
        }
        if self._vision:
            rng = np.random.default_rng((self.config.seed, update, 2))
            for name in self._cameras:
                observation[name] = random_crops(observation[name], self._vision.crop, rng)
        return observation, instruction, self._action[self._future[index]]


def _encode_all(
    encoder: InstructionEncoder, texts: list[str], task: str
) -> npt.NDArray[np.float32]:
    starts = tqdm(range(0, len(texts), 128), desc=f"embedding {task}", leave=False)
    return np.concatenate([encoder.encode(texts[i : i + 128]) for i in starts])


def loss_of(
    policy: DiffusionPolicy,
    batch: tuple[Mapping[str, Tensor], Tensor, Tensor],
    config: PolicyTrainConfig,
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
    observation, instruction, x0 = batch
    rows = len(x0)
    drop = torch.rand(rows, generator=generator) < config.instruction_dropout
    projected = policy.instruction_projection(instruction)
    jitter = config.instruction_noise * torch.randn(projected.shape, generator=generator)
    condition = policy.network.condition_part(
        policy.flatten_observation(observation), projected + jitter, drop
    )
    return denoising_loss(
        policy.network,
        condition,
        x0,
        policy.diffusion,
        draws=config.draws_per_window,
        generator=generator,
    )


def train(config: PolicyTrainConfig) -> checkpoint.Manifest:
    """Train a policy, or go on with an interrupted run, and write the checkpoint.

    Raises:
        FileNotFoundError, ValueError: unusable demonstrations.
        ValueError: `out` holds a run with another configuration.
    """
    # lets the processor multiply in bf16 where it can; weights and sums stay in float32
    torch.set_float32_matmul_precision("medium")
    task = config.task()
    torch.manual_seed(config.seed)
    spec, demos = task.spec, task.demos
    vision = config_class(config.network).vision if cameras(spec) else None
    network = sized_config(config.network, config.sizes, spec, len(task.phrasings) - 1, vision)
    diffusion = DiffusionConfig(prediction_type=config.prediction_type)
    policy = DiffusionPolicy(spec, network, diffusion, vision).train()
    batches = Batches(task, policy, config)
    identity = _identity(config, task, network, vision)
    run = TrainingRun(policy, config, identity)
    if run.finished and (config.out / checkpoint.MANIFEST).exists():
        return checkpoint.read_manifest(config.out)  # nothing is written again

    figures = run.train(
        lambda update, generator: loss_of(policy, batches.draw(update), config, generator)
    )
    manifest = checkpoint.Manifest(
        model_id=_model_id(config, spec, network),
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
            **figures,
        },
        vision=vision,
    )
    return checkpoint.save(config.out, manifest, policy.eval())


def _identity(
    config: PolicyTrainConfig,
    task: TrainingTask,
    network: NetworkConfig,
    vision: VisionConfig | None,
) -> dict[str, object]:
    """What a run depends on, as JSON types."""
    words = json.dumps(task.phrasings).encode()
    fields = config.identity()
    del fields["network"], fields["sizes"]
    # not for the network that was once the only one: runs begun then can go on
    default = FilmMlpConfig.for_spec(task.spec, network.instruction_dim, vision)
    if network != default:
        fields["network"] = json.loads(json.dumps(config_to_json(network)))
    if vision:
        fields["vision"] = json.loads(json.dumps(vision_to_json(vision)))
    return {
        **fields,
        **task.identity,
        "phrasings_sha256": hashlib.sha256(words).hexdigest(),
    }


def _model_id(config: PolicyTrainConfig, spec: PolicySpec, network: NetworkConfig) -> str:
    match network:
        case FilmMlpConfig():
            label = f"{network.width}x{network.num_blocks}"
        case _:
            label = "-".join([network.kind, *config.sizes])
    return f"{spec.task}-{label}-seed{config.seed}"
