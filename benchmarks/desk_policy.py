"""A checkpoint at the desk: loaded once, its instructions embedded once, its simulators reused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.episodes import Conditions, EpisodeSpec, Sample, play
from client.sims.desk.simulation import Desk
from models import checkpoint
from models.instruction_encoder import InstructionEncoder
from models.sampling import Sampling, sample_chunks

_AT_ONCE = 64


class DeskPolicy:
    """Plays episodes in simulated time with any way of sampling.

    Attributes:
        manifest: of the checkpoint.
        policy: in evaluation mode.
    """

    def __init__(self, folder: Path) -> None:
        """Load the checkpoint; network calls use one thread from now on."""
        self.manifest, self.policy = checkpoint.load(folder)
        torch.set_num_threads(1)
        self._encoder = InstructionEncoder()
        self._embeddings: dict[str, npt.NDArray[np.float32]] = {}
        self._desks: list[Desk] = []

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

    def play(
        self,
        specs: Sequence[EpisodeSpec],
        sampling: Sampling,
        progress: Callable[[int], object] = lambda _: None,
    ) -> list[str]:
        """Outcome of each episode when every answer is sampled like this and is there at once."""
        self.embed([spec.instruction for spec in specs])
        return play(
            specs,
            self.sample(lambda _: sampling),
            lambda _: Conditions(0.0, sampling.num_steps),
            progress,
            self._desks,
        )
