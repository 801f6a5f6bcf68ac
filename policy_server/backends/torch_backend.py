"""The policy run by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.policy import DiffusionPolicy
from policy_server.backends.protocol import BackendSettings, StepBuffers


class TorchBackend:
    """See `protocol.Backend`. Inputs are views of the buffers; torch allocates its own outputs."""

    name = "torch"

    def __init__(self, policy: DiffusionPolicy, settings: BackendSettings) -> None:
        torch.set_num_threads(settings.num_threads)
        self._policy = policy.eval()
        self._step = policy.guided_step()
        self.buffers = StepBuffers(
            settings.max_requests, policy.chunk_shape, policy.network.film_dim
        )
        self._conditions = torch.from_numpy(self.buffers.conditions)
        self._drop = torch.tensor([False, True])

    @torch.inference_mode()
    def encode(
        self,
        slot: int,
        observation: Mapping[str, npt.NDArray[Any]],
        instruction: npt.NDArray[np.float32],
    ) -> None:
        """See `protocol.Backend.encode`."""
        twice = {
            name: torch.from_numpy(np.array(array)).expand(2, *array.shape)
            for name, array in observation.items()
        }
        embedded = torch.from_numpy(instruction).expand(2, -1)
        self._conditions[2 * slot : 2 * slot + 2] = self._policy.condition_part(
            twice, embedded, self._drop
        )

    @torch.inference_mode()
    def step(self, requests: int, network_rows: int) -> None:
        """See `protocol.Backend.step`."""
        inputs = self.buffers.inputs(requests, network_rows)
        x_prev, x0 = self._step(*map(torch.from_numpy, inputs.values()))
        self.buffers.x_prev[:requests] = x_prev
        self.buffers.x0[:requests] = x0

    @torch.inference_mode()
    def to_actions(self, x0: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `protocol.Backend.to_actions`."""
        actions: npt.NDArray[np.float32] = self._policy.to_actions(torch.from_numpy(x0)).numpy()
        return actions
