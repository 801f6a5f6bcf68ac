"""1-D convolutional U-Net over the horizon, each residual block modulated by FiLM.

The idea is Diffusion Policy's `ConditionalUnet1D` (Chi et al. 2023, arXiv:2303.04137), after
Janner et al. 2022 (arXiv:2205.09991). What differs, and why:

- The residual block is that of Dhariwal & Nichol 2021 (arXiv:2105.05233, appendix A): normalise
  first, modulate after the second norm, and a last convolution that starts at zero. Every block
  thus begins as its shortcut, and an untrained network of any depth passes gradients like a
  shallow one.
- A skip connection joins at the resolution that it left, so every one of them is used.
- SiLU stands for Mish: the same shape, and one operation less on runtimes without a Mish kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from models.networks.conditioning import FilmConditioned, FilmConfig, changes_nothing


@dataclass(frozen=True)
class Unet1dConfig(FilmConfig):
    """Sizes of a `Unet1d`.

    Attributes:
        widths: channels of each level, finest first; each level after the first halves the
            horizon, which must be divisible that often. (256, 512, 1024) is Diffusion Policy's.
        kernel: taps of a convolution along the horizon, odd.
        groups: groups of channels that are normalised together; divides every width.
    """

    kind: ClassVar[str] = "unet1d"

    widths: tuple[int, ...] = (64, 128, 256)
    kernel: int = 5
    groups: int = 8

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        self.check("kernel", 1, 15)
        self.check("groups", 1)
        if self.kernel % 2 == 0:
            msg = f"Unet1dConfig.kernel: expected an odd number of taps, got {self.kernel}"
            raise ValueError(msg)
        if not self.widths or any(w < self.groups or w % self.groups for w in self.widths):
            msg = (
                f"Unet1dConfig.widths: expected at least one level, each a multiple of groups = "
                f"{self.groups}, got {self.widths}"
            )
            raise ValueError(msg)
        if self.horizon % 2 ** (len(self.widths) - 1):
            msg = (
                f"Unet1dConfig.widths: {len(self.widths)} levels halve the horizon "
                f"{len(self.widths) - 1} times, which {self.horizon} is not divisible by; "
                "use fewer levels, or another horizon"
            )
            raise ValueError(msg)

    def build(self) -> Unet1d:
        """See `NetworkConfig.build`."""
        return Unet1d(self)


# Inside of the network rows lie as [n, length, channels]. On export that is how they are computed:
# products for all rows of a call at once, and scales and shifts that run along the channels. torch
# has its own kernels, for [n, channels, length], of which the other is a view.


class _Conv(nn.Conv1d):
    """A convolution that is exported as one matrix product for all rows.

    ONNX Runtime's convolution takes one row after another and reads all weights for each, so rows
    would share a call without sharing its cost; as products, eight rows of the default network take
    half the time.
    """

    def __init__(self, channels_in: int, channels: int, taps: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels, taps, stride, padding=taps // 2)

    def forward(self, h: Tensor) -> Tensor:
        """[n, length, channels_in] → [n, length / stride, channels]."""
        if not torch.compiler.is_exporting():
            return super().forward(h.transpose(1, 2)).transpose(1, 2)
        (taps,), (stride,) = self.kernel_size, self.stride
        weight = self.weight.transpose(1, 2).flatten(1)
        return _slide(h, taps, stride, weight, self.bias)


class _Grow(nn.ConvTranspose1d):
    """Doubles the length: a transposed convolution of four taps, exported as one product, too."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, 4, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]  # one output size
        """[n, length, channels_in] → [n, 2·length, channels]."""
        if not torch.compiler.is_exporting():
            return super().forward(h.transpose(1, 2)).transpose(1, 2)
        # of three neighbours, two make the first of two new places, and two the second
        taps = self.weight.permute(2, 1, 0)  # [4, channels, channels_in]
        none = torch.zeros_like(taps[0])
        first = torch.cat([taps[3], taps[1], none], dim=1)
        second = torch.cat([none, taps[2], taps[0]], dim=1)
        bias = None if self.bias is None else self.bias.repeat(2)
        pairs = _slide(h, 3, 1, torch.cat([first, second]), bias)
        return pairs.reshape(-1, 2 * h.shape[1], self.out_channels)


def _slide(h: Tensor, taps: int, stride: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer over every `stride`-th window of so many neighbours; zeros beyond the ends.

    Args:
        h: [n, length, channels_in].
        taps: odd.
        stride: divides the length.
        weight: [channels, taps·channels_in].
        bias: [channels].

    Returns:
        [n, length / stride, channels].
    """
    first = torch.arange(0, h.shape[1], stride)
    if taps > 1:
        padded = F.pad(h, (0, 0, taps // 2, taps // 2))
        h = padded.index_select(1, (first[:, None] + torch.arange(taps)).flatten())
    out = F.linear(h.reshape(-1, weight.shape[1]), weight, bias)
    return out.reshape(-1, len(first), len(weight))


class _Norm(nn.GroupNorm):
    """Groups of channels, each normalised over all of the length (Wu & He 2018)."""

    def forward(self, h: Tensor) -> Tensor:
        """Like h, [n, length, channels]."""
        if not torch.compiler.is_exporting():
            return super().forward(h.transpose(1, 2)).transpose(1, 2)
        groups, size = self.num_groups, self.num_channels // self.num_groups
        grouped = h.reshape(-1, h.shape[1], groups, size).transpose(1, 2)
        normal = F.layer_norm(grouped, grouped.shape[2:], eps=self.eps)
        out = normal.transpose(1, 2).flatten(2)
        return out * self.weight + self.bias if self.affine else out


class _Block(nn.Module):
    """shortcut(h) + conv2(silu(scale·norm2(conv1(silu(norm1(h)))) + shift))."""

    def __init__(self, channels_in: int, channels: int, config: Unet1dConfig) -> None:
        super().__init__()
        self.channels = channels
        self.norm1 = _Norm(config.groups, channels_in)
        self.conv1 = _Conv(channels_in, channels, config.kernel)
        self.norm2 = _Norm(config.groups, channels, affine=False)
        self.conv2 = _Conv(channels, channels, config.kernel)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)
        self.shortcut: nn.Module = (
            nn.Identity() if channels_in == channels else _Conv(channels_in, channels, 1)
        )

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """[n, length, channels_in], twice [n, 1, channels] → [n, length, channels]."""
        inner = self.norm2(self.conv1(F.silu(self.norm1(h))))
        modulated = inner * scale + shift
        out: Tensor = self.shortcut(h) + self.conv2(F.silu(modulated))
        return out


class Unet1d(FilmConditioned):
    """See the module's first line; implements `DenoisingNetwork`."""

    def __init__(self, config: Unet1dConfig) -> None:
        super().__init__()
        self.config = config
        widths, deepest = config.widths, config.widths[-1]
        finer = list(pairwise(widths))
        self.read_in = _Conv(config.action_dim, widths[0], config.kernel)
        # two blocks a level, in the order in which they are called: down, at the bottom, up
        self.down_blocks = nn.ModuleList(
            _Block(width, width, config) for width in widths for _ in range(2)
        )
        self.shrink = nn.ModuleList(_Conv(fine, coarse, 3, stride=2) for fine, coarse in finer)
        self.middle_blocks = nn.ModuleList(_Block(deepest, deepest, config) for _ in range(2))
        self.grow = nn.ModuleList(_Grow(coarse, fine) for fine, coarse in reversed(finer))
        self.up_blocks = nn.ModuleList(
            _Block(channels_in, fine, config)
            for fine, _ in reversed(finer)
            for channels_in in (2 * fine, fine)
        )
        self.norm_out = _Norm(config.groups, widths[0])
        self.read_out = _Conv(widths[0], config.action_dim, config.kernel)
        blocks = [*self.down_blocks, *self.middle_blocks, *self.up_blocks]
        self._film_sizes = [block.channels for block in blocks for _ in ("scale", "shift")]
        neutral = changes_nothing([block.channels for block in blocks])
        self._add_conditioning(config, len(neutral), neutral)

    def denoise(self, x_t: Tensor, film: Tensor) -> Tensor:
        """[n, horizon, action_dim], [n, film_dim] → like x_t."""
        parameters = iter(torch.split(film[:, None], self._film_sizes, dim=-1))
        h = self.read_in(x_t)
        skips = []
        for level in range(len(self.config.widths)):
            if level:
                skips.append(h)
                h = self.shrink[level - 1](h)
            h = _two(self.down_blocks, level, h, parameters)
        h = _two(self.middle_blocks, 0, h, parameters)
        for i, grow in enumerate(self.grow):
            h = _two(self.up_blocks, i, torch.cat([grow(h), skips.pop()], dim=2), parameters)
        out: Tensor = self.read_out(F.silu(self.norm_out(h)))
        return out


def _two(blocks: nn.ModuleList, pair: int, h: Tensor, parameters: Iterator[Tensor]) -> Tensor:
    """The blocks 2·pair and 2·pair + 1, each with the next scale and shift."""
    for i in (2 * pair, 2 * pair + 1):
        h = blocks[i](h, next(parameters), next(parameters))
    return h
