"""2-D Gaussian mixtures with a condition: targets whose every score is known in closed form.

What a sampler does to them is its own error alone, without a network's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Mixture:
    """Equally likely conditions, each a mixture of equally likely isotropic Gaussians.

    Attributes:
        modes: [condition][mode][2], the means, within ±1; samples beyond that are clipped.
        std: of every mode.
    """

    modes: tuple[tuple[tuple[float, float], ...], ...]
    std: float

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        if not self.modes or not all(self.modes):
            raise ValueError("mixture: modes: expected at least one mode for every condition")
        if not 0 < self.std < 1:
            msg = f"mixture: std: expected 0 < std < 1, got {self.std}"
            raise ValueError(msg)
        for mode in (mode for modes in self.modes for mode in modes):
            if len(mode) != 2 or not all(abs(value) <= 1 for value in mode):
                msg = f"mixture: modes: expected points of 2 numbers within -1..1, got {mode}"
                raise ValueError(msg)

    @classmethod
    def load(cls, path: Path) -> Mixture:
        """Read a JSON file: {"modes": [condition][mode][2], "std": number}.

        Raises:
            ValueError: not such a file; the message names it.
        """
        try:
            fields = json.loads(path.read_text("utf-8"))
            modes = tuple(
                tuple(tuple(_number(value) for value in mode) for mode in condition)
                for condition in fields["modes"]
            )
            return cls(modes, _number(fields["std"]))  # type: ignore[arg-type]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            msg = f"{path}: expected modes [condition][mode][2] and std: {error!r}"
            raise ValueError(msg) from error

    @property
    def num_conditions(self) -> int:
        """How many conditions there are."""
        return len(self.modes)

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """float64 [all modes, 2], those of the first condition first."""
        return np.array([mode for modes in self.modes for mode in modes], np.float64)

    @property
    def condition_of_mode(self) -> npt.NDArray[np.int64]:
        """int64 [all modes]."""
        counts = [len(modes) for modes in self.modes]
        return np.repeat(np.arange(len(counts)), counts)

    def draw(self, condition: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Independent samples of one condition, float64 [count, 2]."""
        means = np.array(self.modes[condition])
        which = rng.integers(len(means), size=count)
        samples: npt.NDArray[np.float64] = means[which]
        return samples + self.std * rng.standard_normal((count, 2))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"expected a number, got {value!r}"
        raise TypeError(msg)
    return float(value)


QUADRANTS = Mixture(
    modes=tuple(
        tuple((sx * x, sy * y) for x, y in ((0.35, 0.35), (0.8, 0.35), (0.5, 0.8)))
        for sx, sy in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ),
    std=0.06,
)
"""The built-in target: three modes in each quadrant of the plane, condition = quadrant."""


class ExactDenoiser(nn.Module):
    """E[x0 | x_t, condition] of a mixture, behind `DenoisingNetwork`: a network without error.

    The posterior over modes is a softmax; given the mode, x0 is Gaussian with mean
    m + sqrt(ab)·std²/(ab·std² + 1 − ab)·(x_t − sqrt(ab)·m). The FiLM parameters are t, from the
    time part, and the log prior of each mode, from the condition part.
    """

    def __init__(self, mixture: Mixture, alpha_bar: npt.NDArray[np.float64]) -> None:
        super().__init__()
        self._mixture = mixture
        self._means = torch.from_numpy(mixture.means)
        self._alpha_bar = torch.from_numpy(alpha_bar)
        self.film_dim = 1 + len(self._means)

    def time_part(self, timesteps: Tensor) -> Tensor:
        """int64 [n] → [n, film_dim]."""
        film = torch.zeros(len(timesteps), self.film_dim)
        film[:, 0] = timesteps
        return film

    def condition_part(self, observation: Tensor, instruction: Tensor, drop: Tensor) -> Tensor:
        """(ignored), one-hot conditions [n, num_conditions], bool [n] → [n, film_dim]."""
        del observation
        condition_of = torch.from_numpy(self._mixture.condition_of_mode)
        counts = torch.bincount(condition_of)
        prior = torch.where(drop[:, None], 1 / len(counts), instruction)[:, condition_of]
        film = torch.zeros(len(instruction), self.film_dim)
        film[:, 1:] = (prior / counts[condition_of]).log()
        return film

    def denoise(self, x_t: Tensor, film: Tensor) -> Tensor:
        """[n, 1, 2], [n, film_dim] → like x_t."""
        x, means = x_t[:, 0], self._means.to(x_t.dtype)
        ab = self._alpha_bar[film[:, 0].long()].to(x_t.dtype)[:, None]
        signal, variance = ab.sqrt(), ab * self._mixture.std**2 + 1 - ab
        # log N(x; signal·mean, variance) without what all modes have in common
        closeness = signal * (x @ means.T) - 0.5 * ab * means.square().sum(-1)
        posterior = (film[:, 1:] + closeness / variance).softmax(-1)
        gain = signal * self._mixture.std**2 / variance
        x0 = gain * x + (1 - gain * signal) * (posterior @ means)
        return x0[:, None]
