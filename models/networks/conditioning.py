"""FiLM parameters from time and condition, for networks that read the condition as one vector.

FiLM (Perez et al. 2018) scales and shifts features. The parameters here are separable: an MLP of
the time and an MLP of observation and instruction, each linear in its last layer, are added. That
is what a linear layer over the concatenation of both features would compute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.networks.config import NetworkConfig

_TIME_FEATURES = 128


@dataclass(frozen=True)
class FilmConfig(NetworkConfig):
    """Sizes of the conditioning.

    Attributes:
        condition_dim: width of the condition features.
        instruction_features: width of the learned features of the instruction.
    """

    condition_dim: int = field(default=256, kw_only=True)
    instruction_features: int = field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        self.check("condition_dim", 1)
        self.check("instruction_features", 1)


def sinusoidal_features(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal position features of t (Vaswani et al. 2017, §3.5): int [n] → float32 [n, dim]."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(10_000.0) * torch.arange(half, device=timesteps.device) / (half - 1)
    )
    angles = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeMlp(nn.Sequential):
    """int64 timesteps [n] → float [n, out_dim]."""

    def __init__(self, out_dim: int) -> None:
        super().__init__(
            nn.Linear(_TIME_FEATURES, _TIME_FEATURES),
            nn.SiLU(),
            nn.Linear(_TIME_FEATURES, out_dim),
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        """See the class."""
        h = sinusoidal_features(timesteps, _TIME_FEATURES)
        for layer in self:
            h = layer(h)
        return h


def changes_nothing(widths: Sequence[int]) -> Tensor:
    """FiLM parameters that leave features as they are: ones for scales and zeros for shifts.

    Part of the time part, so that no step adds them.

    Args:
        widths: of the features; each has its scales and then its shifts.

    Returns:
        float32 [2·sum(widths)].
    """
    return torch.cat([f(width) for width in widths for f in (torch.ones, torch.zeros)])


class FilmConditioned(nn.Module):
    """The two parts of the FiLM parameters; a network derives from it and adds `denoise`."""

    film_dim: int

    def _add_conditioning(
        self, config: FilmConfig, film_dim: int, neutral: Tensor | None = None
    ) -> None:
        """Call it last in `__init__`.

        An optimiser counts parameters in this order, and seeds give initial weights in it:
        interrupted runs of earlier versions go on.

        Args:
            config: of the network.
            film_dim: numbers in the FiLM parameters of one row.
            neutral: float32 [film_dim], where they start from: `changes_nothing` if there are
                scales among them; zeros if not given.
        """
        self.film_dim = film_dim
        neutral = torch.zeros(film_dim) if neutral is None else neutral
        self.register_buffer("_neutral", neutral, persistent=False)
        features, cond = config.instruction_features, config.condition_dim
        self.time_mlp = TimeMlp(film_dim)
        self.instruction_mlp = nn.Sequential(
            nn.Linear(config.instruction_dim, features),
            nn.SiLU(),
            nn.Linear(features, features),
        )
        self.null_instruction = nn.Parameter(torch.zeros(features))
        self.condition_mlp = nn.Sequential(
            nn.Linear(config.observation_dim + features, cond),
            nn.SiLU(),
            nn.Linear(cond, cond),
            nn.SiLU(),
            nn.Linear(cond, film_dim),
        )

    def time_part(self, timesteps: Tensor) -> Tensor:
        """int64 [n] → float [n, film_dim]."""
        out: Tensor = self.time_mlp(timesteps) + self._neutral
        return out

    def condition_part(self, observation: Tensor, instruction: Tensor, drop: Tensor) -> Tensor:
        """[n, observation_dim], [n, instruction_dim], bool [n] → [n, film_dim]."""
        features = self.instruction_mlp(instruction)
        kept = torch.where(drop[:, None], self.null_instruction, features)
        out: Tensor = self.condition_mlp(torch.cat([observation, kept], dim=-1))
        return out
