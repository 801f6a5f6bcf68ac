"""Encoder and denoising step run by ONNX Runtime on bound, preallocated buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.checkpoint import ENCODER_ONNX, INT8_ONNX, ONNX
from models.export import ENCODER_OUTPUT, observation_input
from models.instruction_encoder import INSTRUCTION_DIM
from models.policy import DiffusionPolicy
from policy_server.backends.bound_graph import BoundGraph
from policy_server.backends.protocol import BackendSettings, StepBuffers


class OnnxBackend:
    """See `protocol.Backend`.

    Args:
        policy: that the graphs are of.
        settings: threads and rows.
        folder: of the graphs, which are read once.
        int8: multiply the step's weights as int8.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        settings: BackendSettings,
        folder: Path,
        *,
        int8: bool = False,
    ) -> None:
        self.name = "onnx-int8" if int8 else "onnx"
        self.num_threads = settings.num_threads
        normalizer = policy.action_normalizer
        self._scale, self._offset = normalizer.scale.numpy(), normalizer.offset.numpy()
        self._minimum, self._maximum = policy.action_minimum.numpy(), policy.action_maximum.numpy()
        most = settings.max_requests
        film_dim = policy.network.film_dim
        self.buffers = StepBuffers(most, policy.chunk_shape, film_dim)
        self._observations = {
            name: np.zeros((most, *array.shape), array.dtype)
            for name, array in policy.spec.observation.items()
        }
        self._instructions = np.zeros((most, INSTRUCTION_DIM), np.float32)
        self._encoded = np.zeros((2 * most, film_dim), np.float32)
        self._step = self._bound_step(folder / (INT8_ONNX if int8 else ONNX), settings)
        self._encoder = self._bound_encoder(folder / ENCODER_ONNX, settings)

    def _bound_step(self, path: Path, settings: BackendSettings) -> BoundGraph:
        buffers = self.buffers
        most = buffers.max_requests
        inputs = buffers.inputs(most, 2 * most)
        whole = {"conditions": inputs.pop("conditions")}
        by_rows = {name: inputs.pop(name) for name in ("request_of", "condition_of")}
        by_requests = {**inputs, **buffers.outputs(most)}
        return BoundGraph(path, settings.num_threads, whole, by_requests, by_rows)

    def _bound_encoder(self, path: Path, settings: BackendSettings) -> BoundGraph:
        most = self.buffers.max_requests
        by_requests: dict[str, npt.NDArray[Any]] = {
            observation_input(name): array for name, array in self._observations.items()
        }
        by_requests["instruction"] = self._instructions
        by_rows: dict[str, npt.NDArray[Any]] = {
            "request_of": np.arange(most).repeat(2),
            "drop": np.tile([False, True], most),
            ENCODER_OUTPUT: self._encoded,
        }
        return BoundGraph(path, settings.num_threads, {}, by_requests, by_rows)

    def encode(
        self,
        slots: Sequence[int],
        observations: Sequence[Mapping[str, npt.NDArray[Any]]],
        instructions: Sequence[npt.NDArray[np.float32]],
    ) -> None:
        """See `protocol.Backend.encode`."""
        for i, (observation, instruction) in enumerate(
            zip(observations, instructions, strict=True)
        ):
            for name, array in self._observations.items():
                array[i] = observation[name]
            self._instructions[i] = instruction
        self._encoder.run(len(slots), 2 * len(slots))
        conditions = self.buffers.conditions
        for i, slot in enumerate(slots):
            conditions[2 * slot : 2 * slot + 2] = self._encoded[2 * i : 2 * i + 2]

    def step(self, requests: int, network_rows: int) -> None:
        """See `protocol.Backend.step`."""
        self._step.run(requests, network_rows)

    def to_actions(self, x0: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `protocol.Backend.to_actions`; as `DiffusionPolicy.to_actions`."""
        actions: npt.NDArray[np.float32] = x0 * self._scale + self._offset
        np.clip(actions, self._minimum, self._maximum, out=actions)
        return actions
