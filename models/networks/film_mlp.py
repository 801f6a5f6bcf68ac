"""Residual MLP over the flattened chunk, each block modulated by FiLM (Perez et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

_TIME_FEATURES = 128


@dataclass(frozen=True)
class FilmMlpConfig:
    """Sizes of a `FilmMlp`.

    Attributes:
        horizon: actions in a chunk.
        action_dim: numbers in an action.
        observation_dim: numbers in a flattened observation history.
        instruction_dim: numbers in a projected instruction.
        width: of the residual stream.
        num_blocks: residual blocks.
        condition_dim: width of the condition features.
        instruction_features: width of the learned features of the instruction.
    """

    horizon: int
    action_dim: int
    observation_dim: int
    instruction_dim: int
    width: int = 384
    num_blocks: int = 3
    condition_dim: int = 256
    instruction_features: int = 64


def sinusoidal_features(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal position features of t (Vaswani et al. 2017, §3.5): int [n] → float32 [n, dim]."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(10_000.0) * torch.arange(half, device=timesteps.device) / (half - 1)
    )
    angles = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _Block(nn.Module):
    """h + W2·silu((1 + scale)·norm(W1·h) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.second = nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        modulated = self.norm(self.first(h)) * (1 + scale) + shift
        out: Tensor = h + self.second(F.silu(modulated))
        return out


class FilmMlp(nn.Module):
    """See the module's first line; implements `DenoisingNetwork`."""

    def __init__(self, config: FilmMlpConfig) -> None:
        super().__init__()
        self.config = config
        chunk_dim = config.horizon * config.action_dim
        self.film_dim = config.num_blocks * 2 * config.width
        width, cond = config.width, config.condition_dim
        self.read_in = nn.Linear(chunk_dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.num_blocks))
        self.read_out = nn.Linear(width, chunk_dim)

        self.time_mlp = nn.Sequential(
            nn.Linear(_TIME_FEATURES, _TIME_FEATURES),
            nn.SiLU(),
            nn.Linear(_TIME_FEATURES, self.film_dim),
        )
        self.instruction_mlp = nn.Sequential(
            nn.Linear(config.instruction_dim, config.instruction_features),
            nn.SiLU(),
            nn.Linear(config.instruction_features, config.instruction_features),
        )
        self.null_instruction = nn.Parameter(torch.zeros(config.instruction_features))
        self.condition_mlp = nn.Sequential(
            nn.Linear(config.observation_dim + config.instruction_features, cond),
            nn.SiLU(),
            nn.Linear(cond, cond),
            nn.SiLU(),
            nn.Linear(cond, self.film_dim),
        )

    def time_part(self, timesteps: Tensor) -> Tensor:
        """int64 [n] → float [n, film_dim]."""
        out: Tensor = self.time_mlp(sinusoidal_features(timesteps, _TIME_FEATURES))
        return out

    def condition_part(self, observation: Tensor, instruction: Tensor, drop: Tensor) -> Tensor:
        """[n, observation_dim], [n, instruction_dim], bool [n] → [n, film_dim]."""
        features = self.instruction_mlp(instruction)
        kept = torch.where(drop[:, None], self.null_instruction, features)
        out: Tensor = self.condition_mlp(torch.cat([observation, kept], dim=-1))
        return out

    def denoise(self, x_t: Tensor, film: Tensor) -> Tensor:
        """[n, horizon, action_dim], [n, film_dim] → like x_t."""
        h = self.read_in(x_t.flatten(1))
        parameters = film.chunk(2 * len(self.blocks), dim=-1)
        for i, block in enumerate(self.blocks):
            h = block(h, parameters[2 * i], parameters[2 * i + 1])
        out: Tensor = self.read_out(F.silu(h)).view_as(x_t)
        return out
