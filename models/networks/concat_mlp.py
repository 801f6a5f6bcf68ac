"""The lesson's network for 2-D points: an MLP over [x_t, time embedding, condition embedding]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

POINT_DIM = 2
_TIME_SCALE = 1000
"""The time embedding sees t / 1000, for any number of timesteps."""


@dataclass(frozen=True)
class ConcatMlpConfig:
    """Sizes of a `ConcatMlp`; the defaults are the lesson's.

    Attributes:
        num_conditions: how many conditions there are, the dropped one not counted.
        hidden: width of the two hidden layers.
        embedding_dim: width of the time embedding and of the condition embedding.
    """

    num_conditions: int
    hidden: int = 128
    embedding_dim: int = 32

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("num_conditions", "hidden", "embedding_dim"):
            if getattr(self, name) < 1:
                msg = f"ConcatMlpConfig.{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)


class ConcatMlp(nn.Module):
    """The `ConditionalNoisePredictor` of the lesson on DDIM and guidance, behind our protocol.

    It is that network and not one like it: the same layers, started the same way, under the same
    names, so that weights can be moved between the two. A linear layer of a concatenation is a sum,

        W·[x, e_t, e_c] + b = (W_x·x + b) + (W_t·e_t + W_c·e_c),

    so it is separable as it stands, and the second bracket is its FiLM (a shift, without a scale).

    Two things differ. The condition is one-hot, where the lesson has one number: a scalar label
    would say that quadrant 3 lies beyond quadrant 2. And what to drop is an argument, where the
    lesson draws it inside of the network: draws belong to the trainer, which can repeat them.
    """

    def __init__(self, config: ConcatMlpConfig) -> None:
        super().__init__()
        self.config = config
        self.film_dim = config.hidden
        embedding, hidden = config.embedding_dim, config.hidden
        self.time_mlp = nn.Sequential(
            nn.Linear(1, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.cond_mlp = nn.Sequential(
            nn.Linear(config.num_conditions, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
        )
        self.net = nn.Sequential(
            nn.Linear(POINT_DIM + 2 * embedding, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, POINT_DIM),
        )
        self.null_cond = nn.Parameter(torch.zeros(embedding))

    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_x, W_t, W_c: the columns of the first layer for each part of the concatenation."""
        time = POINT_DIM
        condition = time + self.config.embedding_dim
        weight = self._first.weight
        return weight[:, :time], weight[:, time:condition], weight[:, condition:]

    @property
    def _first(self) -> nn.Linear:
        return cast("nn.Linear", self.net[0])

    def time_part(self, timesteps: Tensor) -> Tensor:
        """int64 [n] → float [n, film_dim]."""
        embedded = self.time_mlp(timesteps.float()[:, None] / _TIME_SCALE)
        return F.linear(embedded, self._columns()[1])

    def condition_part(self, observation: Tensor, instruction: Tensor, drop: Tensor) -> Tensor:
        """The condition's share of the FiLM parameters.

        Args:
            observation: not used, there is nothing to see; [n, 0] will do.
            instruction: float [n, num_conditions], one-hot.
            drop: bool [n], True for the null embedding.

        Returns:
            float [n, film_dim].
        """
        del observation
        embedded = torch.where(drop[:, None], self.null_cond, self.cond_mlp(instruction))
        return F.linear(embedded, self._columns()[2])

    def denoise(self, x_t: Tensor, film: Tensor) -> Tensor:
        """[n, 1, 2], [n, film_dim] → like x_t."""
        h = F.linear(x_t.flatten(1), self._columns()[0], self._first.bias)
        out: Tensor = self.net[1:](h + film)
        return out.view_as(x_t)
