"""Residual MLP over the flattened chunk, each block modulated by FiLM (Perez et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from models.networks.conditioning import FilmConditioned, FilmConfig, changes_nothing


@dataclass(frozen=True)
class FilmMlpConfig(FilmConfig):
    """Sizes of a `FilmMlp`.

    Attributes:
        width: of the residual stream.
        num_blocks: residual blocks.
    """

    kind: ClassVar[str] = "film_mlp"

    width: int = 384
    num_blocks: int = 3

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        self.check("width", 1)
        self.check("num_blocks", 1)

    def build(self) -> FilmMlp:
        """See `NetworkConfig.build`."""
        return FilmMlp(self)


class _Block(nn.Module):
    """h + W2·silu(scale·norm(W1·h) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.second = nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        modulated = self.norm(self.first(h)) * scale + shift
        out: Tensor = h + self.second(F.silu(modulated))
        return out


class FilmMlp(FilmConditioned):
    """See the module's first line; implements `DenoisingNetwork`."""

    def __init__(self, config: FilmMlpConfig) -> None:
        super().__init__()
        self.config = config
        chunk_dim = config.horizon * config.action_dim
        width = config.width
        self.read_in = nn.Linear(chunk_dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.num_blocks))
        self.read_out = nn.Linear(width, chunk_dim)
        neutral = changes_nothing([width] * config.num_blocks)
        self._add_conditioning(config, len(neutral), neutral)

    def denoise(self, x_t: Tensor, film: Tensor) -> Tensor:
        """[n, horizon, action_dim], [n, film_dim] → like x_t."""
        h = self.read_in(x_t.flatten(1))
        parameters = film.chunk(2 * len(self.blocks), dim=-1)
        for i, block in enumerate(self.blocks):
            h = block(h, parameters[2 * i], parameters[2 * i + 1])
        out: Tensor = self.read_out(F.silu(h)).view_as(x_t)
        return out
