"""What every network's configuration is: the shapes it must fit, and how to build it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self

from client.specs import PolicySpec
from models.networks.protocol import DenoisingNetwork
from models.vision import VisionConfig, cameras, check_vision


@dataclass(frozen=True)
class NetworkConfig(ABC):
    """Shapes that a network must fit; a kind of network adds its own sizes, with defaults.

    Attributes:
        horizon: actions in a chunk.
        action_dim: numbers in an action.
        observation_dim: numbers in a flattened observation history, all steps together, and of the
            patches of its frames.
        instruction_dim: numbers in a projected instruction.
    """

    kind: ClassVar[str]
    """Name of the kind of network, as it stands in a manifest."""
    vision: ClassVar[VisionConfig] = VisionConfig()
    """What it is shown of a camera's frames, unless told otherwise."""

    horizon: int
    action_dim: int
    observation_dim: int
    instruction_dim: int

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("horizon", "action_dim", "observation_dim", "instruction_dim"):
            self.check(name, 1)

    def check(self, name: str, least: int, most: int | None = None) -> None:
        """Refuse a field that is not a whole number in this range.

        Raises:
            ValueError: the message names class and field.
        """
        value = getattr(self, name)
        if type(value) is not int or value < least or (most is not None and value > most):
            expected = f"at least {least}" if most is None else f"{least}..{most}"
            msg = f"{type(self).__name__}.{name}: expected {expected}, got {value!r}"
            raise ValueError(msg)

    @classmethod
    def for_spec(
        cls, spec: PolicySpec, instruction_dim: int, vision: VisionConfig | None = None
    ) -> Self:
        """The default sizes for the shapes of `spec`; change sizes with `dataclasses.replace`.

        Args:
            spec: what the policy takes and gives.
            instruction_dim: numbers in a projected instruction.
            vision: what frames become, if there are cameras.
        """
        return cls(spec.horizon, spec.action_dim, observation_dim(spec, vision), instruction_dim)

    @abstractmethod
    def build(self) -> DenoisingNetwork:
        """The network, a `torch.nn.Module` with initial weights."""


def observation_dim(spec: PolicySpec, vision: VisionConfig | None = None) -> int:
    """Numbers in the flattened observation history, in which frames are features and patches.

    Raises:
        ValueError: `vision` does not fit the cameras of `spec`.
    """
    check_vision(spec, vision)
    frames = cameras(spec) if vision else {}
    vectors = (prod(array.shape) for name, array in spec.observation.items() if name not in frames)
    tokens = len(frames) * spec.obs_steps * (1 + vision.num_patches if vision else 0)
    return sum(vectors) + tokens * (vision.features if vision else 0)
