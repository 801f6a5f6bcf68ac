"""Camera pictures → a few numbers a step: convolutions, then where in the picture each feature is.

After the visual encoder of Diffusion Policy (Chi et al. 2023, arXiv:2303.04137): group norm instead
of batch norm, a spatial softmax (Finn et al. 2016, arXiv:1509.06113) instead of average pooling,
and random crops in training, whose middle one is what is served. Its ResNet-18 is replaced by a few
convolutions, which cost a twentieth: 26 MFLOP a frame.

A network of tokens may have patches besides: parts of the last feature map, each one vector, cut as
the patches of Dosovitskiy et al. 2021 (arXiv:2010.11929) are, by a convolution as wide as its step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from client.specs import ArraySpec, PolicySpec

_GROUP = 8  # channels that are normalised together
_STRIDES = (2, 2)  # of the first layers; the others keep the resolution
_COLOURS = 3


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a `CameraEncoder`; every camera of a policy has one of its own.

    Attributes:
        crop: rows and columns that are looked at: a random part in training, else the middle.
        channels: of each convolution; multiples of 8.
        key_points: feature maps of which the position is taken.
        features: numbers that a frame becomes, and each of its patches.
        patch: rows and columns of a patch, in places of the last feature map (4 pixels each in a
            large enough network); what is left over at the edges is not seen. No patches if None.
    """

    crop: tuple[int, int] = (84, 84)
    channels: tuple[int, ...] = (16, 32, 32, 32)
    key_points: int = 32
    features: int = 64
    patch: int | None = None

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("crop", "channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        numbers = [*self.crop, *self.channels, self.key_points, self.features]
        numbers += [] if self.patch is None else [self.patch]
        if any(type(number) is not int or number < 1 for number in numbers):
            msg = f"vision: expected whole numbers of at least 1, got {self}"
            raise ValueError(msg)
        if len(self.crop) != 2:
            msg = f"vision.crop: expected (rows, columns), got {self.crop}"
            raise ValueError(msg)
        if not self.channels or any(channels % _GROUP for channels in self.channels):
            msg = f"vision.channels: expected multiples of {_GROUP}, got {self.channels}"
            raise ValueError(msg)
        if self.patch is not None and self.patch > min(self.map_size):
            msg = f"vision.patch: expected at most {min(self.map_size)}, got {self.patch}"
            raise ValueError(msg)

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows and columns of the last feature map."""
        stride = prod(_STRIDES[: len(self.channels)])
        return (-(-self.crop[0] // stride), -(-self.crop[1] // stride))

    @property
    def num_patches(self) -> int:
        """Of a frame."""
        return prod(size // self.patch for size in self.map_size) if self.patch else 0


def cameras(spec: PolicySpec) -> dict[str, ArraySpec]:
    """The arrays of an observation that are pictures: uint8 [obs_steps, rows, columns, 3]."""
    return {
        name: array
        for name, array in spec.observation.items()
        if array.dtype == "uint8" and len(array.shape) == 4 and array.shape[-1] == _COLOURS
    }


def camera_encoders(spec: PolicySpec, vision: VisionConfig | None) -> dict[str, CameraEncoder]:
    """One encoder for each camera of `spec`, with initial weights.

    Raises:
        ValueError: see `check_vision`.
    """
    check_vision(spec, vision)
    return {name: CameraEncoder(vision) for name in cameras(spec)} if vision else {}


def check_vision(spec: PolicySpec, vision: VisionConfig | None) -> None:
    """Refuse a configuration that the observation does not fit.

    Raises:
        ValueError: cameras without sizes of an encoder, or sizes without a camera, or a camera that
            is smaller than what is looked at.
    """
    found = cameras(spec)
    if bool(found) != (vision is not None):
        expected = f"sizes for the cameras {', '.join(found)}" if found else "none without a camera"
        msg = f"vision: expected {expected} of {spec.task!r}, got {vision}"
        raise ValueError(msg)
    for name, array in found.items():
        size = array.shape[1:3]
        if vision and (size[0] < vision.crop[0] or size[1] < vision.crop[1]):
            msg = f"vision.crop: expected at most the {size} of camera {name!r}, got {vision.crop}"
            raise ValueError(msg)


class CameraEncoder(nn.Module):
    """See the module's first lines."""

    grid: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        before = _COLOURS
        for i, channels in enumerate(config.channels):
            stride = _STRIDES[i] if i < len(_STRIDES) else 1
            kernel = 3 if i else 5
            layers += [
                nn.Conv2d(before, channels, kernel, stride, padding=kernel // 2),
                nn.GroupNorm(channels // _GROUP, channels),
                nn.ReLU(),
            ]
            before = channels
        self.layers = nn.Sequential(*layers)
        self.scores = nn.Conv2d(before, config.key_points, 1, bias=False)  # softmax ignores a bias
        self.read_out = nn.Linear(2 * config.key_points, config.features)
        self.register_buffer("grid", _positions(*config.map_size), persistent=False)
        if config.patch:
            self.patches = nn.Conv2d(before, config.features, config.patch, config.patch)

    def forward(self, images: Tensor) -> Tensor:
        """Look at the middle of each frame.

        Args:
            images: uint8 [n, obs_steps, rows, columns, 3], RGB; bytes until here, so that nothing
                larger has to be moved.

        Returns:
            float [n, obs_steps, 1 + num_patches, features]: the frame as a whole, then its patches,
            row by row.
        """
        frames = _middle(images, self.config.crop).flatten(0, 1).permute(0, 3, 1, 2)
        h = frames.to(self.grid.dtype) / 127.5 - 1
        maps = self.layers(h)
        seen: Tensor = self.read_out(self.key_points(maps).flatten(1))[:, None]
        if self.config.patch:
            seen = torch.cat([seen, self.patches(maps).flatten(2).transpose(1, 2)], dim=1)
        return seen.view(*images.shape[:2], *seen.shape[1:])

    def key_points(self, maps: Tensor) -> Tensor:
        """Expected position of each feature map under a softmax over all places (Finn et al. 2016).

        Its temperature is 1: the weights of the scores can make up for any other.

        Args:
            maps: float [frames, channels, rows, columns].

        Returns:
            float [frames, key_points, 2]: x to the right and y down, −1..1.
        """
        return F.softmax(self.scores(maps).flatten(2), dim=-1) @ self.grid


def _positions(rows: int, columns: int) -> Tensor:
    """The x and y of every place, −1..1 from the first to the last: float [rows · columns, 2]."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij"
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _middle(images: Tensor, crop: tuple[int, int]) -> Tensor:
    """[n, obs_steps, rows, columns, 3] → [n, obs_steps, *crop, 3]."""
    top, left = ((size - part) // 2 for size, part in zip(images.shape[2:4], crop, strict=True))
    return images[:, :, top : top + crop[0], left : left + crop[1]]


def random_crops(images: Tensor, crop: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """A random part of each window's frames, the same one in all of its steps, for training.

    Args:
        images: uint8 [n, obs_steps, rows, columns, 3].
        crop: rows and columns of the part.
        rng: of the n places.

    Returns:
        uint8 [n, obs_steps, *crop, 3].
    """
    rows, columns = images.shape[2:4]
    tops = rng.integers(rows - crop[0] + 1, size=len(images))
    lefts = rng.integers(columns - crop[1] + 1, size=len(images))
    return torch.stack(
        [
            window[:, top : top + crop[0], left : left + crop[1]]
            for window, top, left in zip(images, tops, lefts, strict=True)
        ]
    )


def vision_to_json(vision: VisionConfig) -> dict[str, object]:
    """As JSON types; without patches it is what it was before there were any."""
    return {name: value for name, value in asdict(vision).items() if value is not None}


def vision_from_json(fields: Mapping[str, object] | None) -> VisionConfig | None:
    """The configuration as a manifest has it; None where the manifest has none."""
    return None if fields is None else VisionConfig(**fields)  # type: ignore[arg-type]
