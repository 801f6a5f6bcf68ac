"""Affine maps between a robot's units and the network's, fitted on training demonstrations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST_SCALE = 1e-3
"""Below this spread (1 mm for a position) a dimension is constant: centred, but not blown up."""


class Normalizer(nn.Module):
    """normalised = (x − offset) / scale along the last axis; saved with the weights."""

    offset: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit_standard(self, x: Tensor) -> None:
        """Zero mean and unit standard deviation over x, float [n, dim]."""
        self._set(x.mean(0), x.std(0))

    def fit_range(self, x: Tensor) -> None:
        """The range of x, float [n, dim], becomes −1..1."""
        low, high = x.amin(0), x.amax(0)
        self._set((low + high) / 2, (high - low) / 2)

    def _set(self, offset: Tensor, scale: Tensor) -> None:
        self.offset.copy_(offset)
        self.scale.copy_(torch.where(scale < _SMALLEST_SCALE, torch.ones_like(scale), scale))

    def forward(self, x: Tensor) -> Tensor:
        """Robot's units → normalised, [..., dim]."""
        return (x - self.offset) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Normalised → robot's units, [..., dim]."""
        return x * self.scale + self.offset
