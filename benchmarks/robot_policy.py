"""A checkpoint and its robot: loaded once, instructions embedded once, simulators reused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.episodes import Conditions, Ending, EpisodeSpec, Sample, play
from benchmarks.policy_choice import robot_of
from client.history import ObservationHistory
from client.sims.simulation import Simulation
from models import checkpoint
from models.instruction_encoder import InstructionEncoder
from models.samplers import draw_noise
from models.sampling import Sampling, denoise, sample_chunks

_AT_ONCE = 64
_SPREAD_OBSERVATIONS, _SPREAD_SEEDS = 24, 32


class RobotPolicy:
    """Plays episodes in simulated time with any way of sampling.

    Attributes:
        manifest: of the checkpoint.
        policy: in evaluation mode.
        robot: which it drives.
    """

    def __init__(self, folder: Path) -> None:
        """Load the checkpoint; network calls use one thread from now on.

        Raises:
            CheckpointError, ValueError: it is unusable, or of a robot that is not simulated here.
        """
        self.manifest, self.policy = checkpoint.load(folder)
        self.robot = robot_of(self.manifest.spec, folder)
        torch.set_num_threads(1)
        self._step = self.policy.guided_step()
        self._encoder = InstructionEncoder()
        self._embeddings: dict[str, npt.NDArray[np.float32]] = {}
        self._simulations: list[Simulation[Any]] = []

    def sampling(self, num_steps: int, guidance_scale: float | None = None) -> Sampling:
        """The checkpoint's defaults with this step count (1 .. T), and another w if given.

        Raises:
            ValueError: num_steps out of range.
        """
        most = self.manifest.diffusion.num_timesteps
        if not 1 <= num_steps <= most:
            msg = f"num_steps: expected 1..{most} (T of this policy), got {num_steps}"
            raise ValueError(msg)
        defaults = self.manifest.defaults
        return Sampling(
            num_steps,
            defaults.sampler,
            defaults.grid,
            defaults.eta,
            defaults.guidance_scale if guidance_scale is None else guidance_scale,
            defaults.guidance_interval,
        )

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Instruction embeddings [texts, INSTRUCTION_DIM]; each text is encoded once, ever."""
        new = sorted(set(texts) - self._embeddings.keys())
        for first in range(0, len(new), _AT_ONCE):
            some = new[first : first + _AT_ONCE]
            self._embeddings.update(zip(some, self._encoder.encode(some), strict=True))
        return np.stack([self._embeddings[text] for text in texts])

    def sample(self, sampling: Callable[[int], Sampling]) -> Sample:
        """The policy as `benchmarks.episodes.play` wants it.

        Args:
            sampling: num_steps → how an answer with so many is sampled.
        """

        def sample(
            observation: Mapping[str, npt.NDArray[Any]],
            instructions: Sequence[str],
            seeds: Sequence[int],
            num_steps: int,
        ) -> npt.NDArray[np.float32]:
            how = sampling(num_steps)
            return sample_chunks(self.policy, observation, self.embed(instructions), how, seeds)

        return sample

    def observations(self, specs: Sequence[EpisodeSpec]) -> dict[str, npt.NDArray[np.float32]]:
        """What the robot sees at the start of each episode, [specs, obs_steps, …] a name."""
        seen = []
        simulation = self._simulations[0] if self._simulations else self.robot.simulation()
        for spec in specs:
            simulation.reset(simulation.sample_start(np.random.default_rng(spec.seed)))
            history = ObservationHistory(self.robot.spec)
            history.add(0, simulation.observation())
            seen.append(history.stacked())
        names = self.robot.spec.observation
        return {name: np.stack([one[name] for one in seen]) for name in names}

    def spread(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> dict[str, Any]:
        """How different the chunks are that one observation and instruction get.

        Args:
            specs: their starts and instructions; the first 24 are used.
            sampling: how each chunk is sampled, with 32 seeds.

        Returns:
            chunk_spread: standard deviation over seeds, root mean square over observations,
            ticks and action dimensions, in the action's own units (at the desk −1..1).
        """
        some = specs[:_SPREAD_OBSERVATIONS]
        rows = np.repeat(np.arange(len(some)), _SPREAD_SEEDS)
        observation = {name: a[rows] for name, a in self.observations(some).items()}
        instruction = self.embed([some[int(row)].instruction for row in rows])
        chunks = sample_chunks(
            self.policy, observation, instruction, sampling, seeds=range(len(rows))
        ).reshape(len(some), _SPREAD_SEEDS, -1)
        return {"chunk_spread": float(np.sqrt(chunks.var(axis=1).mean()))}

    @torch.inference_mode()
    def draw(self, sampling: Sampling) -> None:
        """Denoise one chunk alone, to be timed."""
        denoise(
            self._step,
            self.policy.diffusion.alpha_bar,
            torch.zeros(2, self.policy.network.film_dim),
            sampling,
            lambda t: draw_noise(0, t, (1, *self.policy.chunk_shape)),
        )

    def play(
        self,
        specs: Sequence[EpisodeSpec],
        sampling: Sampling,
        progress: Callable[[int], object] = lambda _: None,
    ) -> list[Ending]:
        """How each episode ends when every answer is sampled like this and is there at once."""
        self.embed([spec.instruction for spec in specs])
        return play(
            self.robot,
            specs,
            self.sample(lambda _: sampling),
            lambda _: Conditions(0.0, sampling.num_steps),
            progress,
            simulations=self._simulations,
        )
