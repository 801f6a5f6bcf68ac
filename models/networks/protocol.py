"""What every denoising network offers: separable conditioning, then one cheap pass per step."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class DenoisingNetwork(Protocol):
    """A network whose conditioning is *separable*: FiLM parameters = time part + condition part.

    The time part depends on t alone and becomes a table; the condition part is computed once a
    request. What is left for every denoising step is `denoise`.
    """

    film_dim: int
    """Numbers in the FiLM parameters of one row."""

    def time_part(self, timesteps: Tensor) -> Tensor:
        """int64 [n] → float [n, film_dim]."""
        ...

    def condition_part(self, observation: Tensor, instruction: Tensor, drop: Tensor) -> Tensor:
        """The condition's share of the FiLM parameters.

        Args:
            observation: float [n, observation_dim], normalised, always used; one observation step
                after another, oldest first, each with all of its arrays, then the patches of
                frames, if there are any.
            instruction: float [n, instruction_dim], projected sentence embeddings.
            drop: bool [n]; True replaces the instruction by the learned null embedding.

        Returns:
            float [n, film_dim].
        """
        ...

    def denoise(self, x_t: Tensor, film: Tensor) -> Tensor:
        """One evaluation: float [n, horizon, action_dim] and [n, film_dim] → like x_t."""
        ...
