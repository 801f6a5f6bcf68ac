"""A diffusion policy: everything between a robot's units and the denoising network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.specs import PolicySpec
from models.guided_step import GuidedStep, PredictionType
from models.instruction_encoder import INSTRUCTION_DIM
from models.instruction_projection import InstructionProjection
from models.networks.config import NetworkConfig, observation_dim
from models.networks.protocol import DenoisingNetwork
from models.normalizer import Normalizer
from models.schedules import ScheduleName, make_alpha_bar
from models.vision import VisionConfig, camera_encoders, cameras


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process a policy was trained on.

    Attributes:
        schedule: name of the noise schedule.
        num_timesteps: T.
        prediction_type: what the network outputs.
        clip: predicted x0 is clipped to ±clip (normalised units) after guidance.
    """

    schedule: ScheduleName = "cosine"
    num_timesteps: int = 1000
    prediction_type: PredictionType = "sample"
    clip: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges; unknown names are refused where they are used."""
        if not self.clip > 0:
            msg = f"DiffusionConfig.clip: expected > 0, got {self.clip}"
            raise ValueError(msg)

    @cached_property
    def alpha_bar(self) -> npt.NDArray[np.float64]:
        """float64 [T]."""
        return make_alpha_bar(self.schedule, self.num_timesteps)


class DiffusionPolicy(nn.Module):
    """Network, normalisers, camera encoders and noise schedule; no sampling loop."""

    action_minimum: Tensor
    action_maximum: Tensor

    def __init__(
        self,
        spec: PolicySpec,
        network: NetworkConfig,
        diffusion: DiffusionConfig,
        vision: VisionConfig | None = None,
    ) -> None:
        """Build the network and an encoder for each camera, with initial weights.

        Raises:
            ValueError: the network or the encoders have other shapes than `spec`.
        """
        super().__init__()
        expected = (spec.horizon, spec.action_dim, observation_dim(spec, vision))
        found = (network.horizon, network.action_dim, network.observation_dim)
        if found != expected:
            msg = (
                "network: horizon, action_dim, observation_dim: expected "
                f"{expected} as in the spec of {spec.task!r}, got {found}; "
                "NetworkConfig.for_spec takes them from a spec"
            )
            raise ValueError(msg)
        self.spec = spec
        self.diffusion = diffusion
        self.vision = vision
        self.network: DenoisingNetwork = network.build()
        self.observation_normalizers = nn.ModuleDict(
            {
                name: Normalizer(array.shape[-1])
                for name, array in spec.observation.items()
                if name not in cameras(spec)
            }
        )
        self.action_normalizer = Normalizer(spec.action_dim)
        self.instruction_projection = InstructionProjection(
            INSTRUCTION_DIM, network.instruction_dim
        )
        for name in ("action_minimum", "action_maximum"):
            self.register_buffer(name, torch.tensor(getattr(spec, name)), persistent=False)
        # last: seeds give initial weights in this order, and policies without cameras keep theirs
        self.camera_encoders = nn.ModuleDict(camera_encoders(spec, vision))

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(horizon, action_dim)."""
        return (self.spec.horizon, self.spec.action_dim)

    def flatten_observation(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Normalise and flatten observations, one step after another, oldest first; then patches.

        Args:
            observation: name → [n, obs_steps, ...], in the robot's units; a camera's frames are
                uint8, and may be larger than what its encoder looks at.

        Returns:
            float [n, observation_dim].
        """
        steps, patches = [], []
        for name in self.spec.observation:
            if name in self.camera_encoders:
                seen = self.camera_encoders[name](observation[name])
                steps.append(seen[:, :, 0])
                patches.append(seen[:, :, 1:].flatten(1))
            else:
                numbers = self.observation_normalizers[name](observation[name])
                steps.append(numbers.flatten(1).unflatten(1, (self.spec.obs_steps, -1)))
        flat = torch.cat(steps, dim=-1).flatten(1)
        has_patches = self.vision is not None and self.vision.patch is not None
        return torch.cat([flat, *patches], dim=1) if has_patches else flat

    def condition_part(
        self, observation: Mapping[str, Tensor], instruction: Tensor, drop: Tensor
    ) -> Tensor:
        """What a request computes once; the network sees the projected instruction.

        Args:
            observation: name → [n, obs_steps, ...], in the robot's units.
            instruction: float [n, INSTRUCTION_DIM], sentence embeddings.
            drop: bool [n], True for the unconditional branch (the observation stays).

        Returns:
            float [n, film_dim].
        """
        return self.network.condition_part(
            self.flatten_observation(observation), self.instruction_projection(instruction), drop
        )

    def guided_step(self) -> GuidedStep:
        """The module that backends run once a denoising step, in evaluation mode."""
        diffusion = self.diffusion
        step = GuidedStep(
            self.network, diffusion.alpha_bar, diffusion.prediction_type, diffusion.clip
        )
        return step.eval()

    def condition_encoder(self) -> ConditionEncoder:
        """The module that backends run once a request, in evaluation mode."""
        return ConditionEncoder(self).eval()

    def to_actions(self, x0: Tensor) -> Tensor:
        """Clean sample → actions in the robot's units and limits, [..., action_dim].

        The training range already lies within the limits; the clamp is for its rounding.
        """
        actions: Tensor = self.action_normalizer.inverse(x0)
        return actions.clamp(self.action_minimum, self.action_maximum)


class ConditionEncoder(nn.Module):
    """Observations and instructions of R requests → N condition parts, as arrays see it.

    Like `GuidedStep` it has positional inputs, of which an ONNX graph can be made.
    """

    def __init__(self, policy: DiffusionPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self,
        observation: tuple[Tensor, ...],
        instruction: Tensor,
        request_of: Tensor,
        drop: Tensor,
    ) -> Tensor:
        """Condition parts of every row.

        Args:
            observation: each [R, obs_steps, ...] in the robot's units, in the order of the spec.
            instruction: float32 [R, INSTRUCTION_DIM], sentence embeddings.
            request_of: int64 [N], the request of each row.
            drop: bool [N], True for the unconditional branch.

        Returns:
            float32 [N, film_dim].
        """
        policy = self.policy
        named = dict(zip(policy.spec.observation, observation, strict=True))
        return policy.network.condition_part(
            policy.flatten_observation(named).index_select(0, request_of),
            policy.instruction_projection(instruction).index_select(0, request_of),
            drop,
        )
