"""The policy run by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        self.num_threads = settings.num_threads
        torch.set_num_threads(settings.num_threads)
        self._policy = policy.eval()
        self._encoder = policy.condition_encoder()
        self._step = policy.guided_step()
        self.buffers = StepBuffers(
            settings.max_requests, policy.chunk_shape, policy.network.film_dim
        )
        self._by_slot = torch.from_numpy(self.buffers.conditions).view(settings.max_requests, 2, -1)
        self._request_of = torch.arange(settings.max_requests).repeat_interleave(2)
        self._drop = torch.tensor([False, True]).repeat(settings.max_requests)

    @torch.inference_mode()
    def encode(
        self,
        slots: Sequence[int],
        observations: Sequence[Mapping[str, npt.NDArray[Any]]],
        instructions: Sequence[npt.NDArray[np.float32]],
    ) -> None:
        """See `protocol.Backend.encode`."""
        rows = 2 * len(slots)
        parts = self._encoder(
            tuple(
                torch.from_numpy(np.stack([observation[name] for observation in observations]))
                for name in self._policy.spec.observation
            ),
            torch.from_numpy(np.stack(instructions)),
            self._request_of[:rows],
            self._drop[:rows],
        )
        self._by_slot[torch.tensor(slots)] = parts.view(len(slots), 2, -1)

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
