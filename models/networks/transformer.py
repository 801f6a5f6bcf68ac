"""Transformer over the actions of the chunk, which cross-attend to tokens of the condition.

After the transformer of Diffusion Policy (Chi et al. 2023, arXiv:2303.04137, §3.1). Each action is
a token; each observation step is one, and so are the instruction and, where there are cameras, each
patch of their frames. What a block needs of the condition tokens are their keys and values, which
no denoising step changes: they are the condition part. Time is not a token here: it scales and
shifts the normalised features (the adaptive layer norm of Peebles & Xie 2023, arXiv:2212.09748),
with parameters from the time part.

So the flat vector is [scales and shifts | keys and values]. The time part is zero in the second
half, the condition part in the first: their sum holds both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from client.specs import PolicySpec
from models.networks.conditioning import TimeMlp, changes_nothing
from models.networks.config import NetworkConfig, observation_dim
from models.vision import VisionConfig, cameras


@dataclass(frozen=True)
class TransformerConfig(NetworkConfig):
    """Sizes of a `Transformer`.

    Attributes:
        obs_steps: observations in the history, each of which is a token.
        width: of every token.
        num_blocks: each self-attends, cross-attends, and has an MLP of 4·width.
        num_heads: of both attentions; divides the width.
        num_patches: patches of camera frames, all steps and cameras together.
        patch_dim: numbers in a patch; they are the last of the observation.
    """

    kind: ClassVar[str] = "transformer"
    vision: ClassVar[VisionConfig] = VisionConfig(patch=3)

    obs_steps: int
    width: int = 128
    num_blocks: int = 4
    num_heads: int = 4
    num_patches: int | None = None
    patch_dim: int | None = None

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        for name in ("obs_steps", "width", "num_blocks", "num_heads"):
            self.check(name, 1)
        if self.num_patches is not None or self.patch_dim is not None:
            self.check("num_patches", 1)
            self.check("patch_dim", 1)
        for what, whole, part in (
            ("observation_dim", self.steps_dim, "obs_steps"),
            ("width", self.width, "num_heads"),
        ):
            if whole < 1 or whole % getattr(self, part):
                aside = f" besides {self.patches_shape} in patches" if self.num_patches else ""
                msg = (
                    f"TransformerConfig.{what}: expected a multiple of {part} = "
                    f"{getattr(self, part)}, got {whole}{aside}"
                )
                raise ValueError(msg)

    @property
    def patches_shape(self) -> tuple[int, int]:
        """(num_patches, patch_dim), zeros without cameras."""
        return (self.num_patches or 0, self.patch_dim or 0)

    @property
    def steps_dim(self) -> int:
        """Numbers in all observation steps, without the patches of their frames."""
        return self.observation_dim - prod(self.patches_shape)

    @classmethod
    def for_spec(
        cls, spec: PolicySpec, instruction_dim: int, vision: VisionConfig | None = None
    ) -> Self:
        """See `NetworkConfig.for_spec`."""
        shapes = (spec.horizon, spec.action_dim, observation_dim(spec, vision), instruction_dim)
        config = cls(*shapes, spec.obs_steps)
        if vision is None or vision.patch is None:
            return config
        frames = len(cameras(spec)) * spec.obs_steps
        return replace(config, num_patches=frames * vision.num_patches, patch_dim=vision.features)

    def build(self) -> Transformer:
        """See `NetworkConfig.build`."""
        return Transformer(self)


class _Block(nn.Module):
    """Self-attention, cross-attention and an MLP, each normalised first and added to its input.

    What each adds starts at zero, so that a new network of any depth passes gradients like none.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_q = nn.Linear(width, width)
        self.cross_out = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        for layer in (self.self_out, self.cross_out, self.narrow):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, film: Tensor, keys_values: Tensor) -> Tensor:
        """One block.

        Args:
            h: [n, horizon, width].
            film: [n, 4, 1, width], scale and shift for the self-attention, then for the MLP.
            keys_values: [n, 2, num_heads, tokens, width / num_heads], of the condition tokens.

        Returns:
            Like h.
        """
        scale, shift, mlp_scale, mlp_shift = film.unbind(1)
        q, k, v = self.self_qkv(self.norm(h) * scale + shift).chunk(3, dim=-1)
        h = h + self.self_out(_attend(self._heads(q), self._heads(k), self._heads(v)))
        q = self.cross_q(self.cross_norm(h))
        h = h + self.cross_out(_attend(self._heads(q), *keys_values.unbind(1)))
        inner = self.widen(self.norm(h) * mlp_scale + mlp_shift)
        out: Tensor = h + self.narrow(F.gelu(inner))
        return out

    def _heads(self, h: Tensor) -> Tensor:
        """[n, tokens, width] → [n, num_heads, tokens, width / num_heads]."""
        return h.reshape(*h.shape[:2], self.num_heads, -1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (Vaswani et al. 2017, eq. 1), the heads side by side: [n, tokens of q, width].

    In plain operations: the fused one of torch has no equal in every runtime.
    """
    weights = (q @ k.transpose(2, 3) / sqrt(q.shape[-1])).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """See the module's first lines; implements `DenoisingNetwork`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, blocks, heads = config.width, config.num_blocks, config.num_heads
        self._steps_shape = (config.obs_steps, config.steps_dim // config.obs_steps)
        self._film_shape = (blocks, 4, 1, width)
        self._time_dim = prod(self._film_shape)
        tokens = config.obs_steps + 1 + config.patches_shape[0]
        self._keys_values_shape = (blocks, 2, heads, tokens, width // heads)
        self.film_dim = self._time_dim + prod(self._keys_values_shape)

        self.read_in = nn.Linear(config.action_dim, width)
        # about as large as what read_in gives, so that actions are told apart from the start
        self.positions = nn.Parameter(0.5 * torch.randn(config.horizon, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width)
        self.read_out = nn.Linear(width, config.action_dim)

        self.time_mlp = TimeMlp(self._time_dim)
        neutral = changes_nothing([width] * 2 * blocks)
        self.register_buffer("_neutral", neutral, persistent=False)
        self.observation_mlp = _token_mlp(self._steps_shape[1], width)
        self.observation_positions = nn.Parameter(0.5 * torch.randn(config.obs_steps, width))
        self.instruction_mlp = _token_mlp(config.instruction_dim, width)
        self.null_instruction = nn.Parameter(torch.zeros(width))
        self.keys_values = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, blocks * 2 * width))
        if config.num_patches:
            self.patch_mlp = _token_mlp(config.patches_shape[1], width)
            self.patch_positions = nn.Parameter(0.5 * torch.randn(config.num_patches, width))

    def time_part(self, timesteps: Tensor) -> Tensor:
        """int64 [n] → float [n, film_dim]."""
        out = self.time_mlp(timesteps) + self._neutral
        return F.pad(out, (0, self.film_dim - self._time_dim))

    def condition_part(self, observation: Tensor, instruction: Tensor, drop: Tensor) -> Tensor:
        """[n, observation_dim], [n, instruction_dim], bool [n] → [n, film_dim]."""
        steps_dim = self.config.steps_dim
        steps = self.observation_mlp(observation[:, :steps_dim].reshape(-1, *self._steps_shape))
        said = torch.where(drop[:, None], self.null_instruction, self.instruction_mlp(instruction))
        parts = [steps + self.observation_positions, said[:, None]]
        if self.config.num_patches:
            patches = observation[:, steps_dim:].reshape(-1, *self.config.patches_shape)
            parts.append(self.patch_mlp(patches) + self.patch_positions)
        keys_values = self.keys_values(torch.cat(parts, dim=1)).unflatten(
            2, (*self._keys_values_shape[:3], -1)
        )
        # in the order in which `denoise` reads them, so that no step has to move them
        ordered = keys_values.permute(0, 2, 3, 4, 1, 5).flatten(1)
        return F.pad(ordered, (self._time_dim, 0))

    def denoise(self, x_t: Tensor, film: Tensor) -> Tensor:
        """[n, horizon, action_dim], [n, film_dim] → like x_t."""
        time, keys_values = film[:, : self._time_dim], film[:, self._time_dim :]
        films = time.reshape(-1, *self._film_shape).unbind(1)
        conditions = keys_values.reshape(-1, *self._keys_values_shape).unbind(1)
        h = self.read_in(x_t) + self.positions
        for block, block_film, condition in zip(self.blocks, films, conditions, strict=True):
            h = block(h, block_film, condition)
        out: Tensor = self.read_out(self.norm_out(h))
        return out


def _token_mlp(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))
