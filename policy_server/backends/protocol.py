"""What the engine needs of a backend, and the arrays they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.guidance import branch_rows


class StepBuffers:
    """The inputs and outputs of one `GuidedStep` call, allocated once and reused for every call.

    A call uses the first rows of each array. Conditions lie in slots: two rows of `conditions` a
    slot, the conditional and the unconditional part.
    """

    def __init__(self, max_requests: int, chunk_shape: tuple[int, int], film_dim: int) -> None:
        chunks = (max_requests, *chunk_shape)
        self.max_requests = max_requests
        self.x_t = np.zeros(chunks, np.float32)
        self.x0_prev = np.zeros(chunks, np.float32)
        self.noise = np.zeros(chunks, np.float32)
        self.timesteps = np.zeros(max_requests, np.int64)
        self.guidance_scale = np.zeros(max_requests, np.float32)
        self.coefficients = np.zeros((max_requests, 4), np.float32)
        self.cond_row = np.zeros(max_requests, np.int64)
        self.uncond_row = np.zeros(max_requests, np.int64)
        self.request_of = np.zeros(2 * max_requests, np.int64)
        self.condition_of = np.zeros(2 * max_requests, np.int64)
        self.conditions = np.zeros((2 * max_requests, film_dim), np.float32)
        self.x_prev = np.zeros(chunks, np.float32)
        self.x0 = np.zeros(chunks, np.float32)

    def lay_out(self, guidance_scale: npt.NDArray[np.float32], slots: npt.NDArray[np.int64]) -> int:
        """Fill the index arrays for requests in these slots; return the number of network rows."""
        rows = branch_rows(guidance_scale, slots)
        requests, network_rows = len(slots), len(rows.request_of)
        self.guidance_scale[:requests] = guidance_scale
        self.cond_row[:requests] = rows.cond_row
        self.uncond_row[:requests] = rows.uncond_row
        self.request_of[:network_rows] = rows.request_of
        self.condition_of[:network_rows] = rows.condition_of
        return network_rows

    def inputs(self, requests: int, network_rows: int) -> dict[str, npt.NDArray[Any]]:
        """Views of the input arrays by the name they have in `GuidedStep.forward`, in its order."""
        return {
            "x_t": self.x_t[:requests],
            "x0_prev": self.x0_prev[:requests],
            "timesteps": self.timesteps[:requests],
            "conditions": self.conditions,
            "request_of": self.request_of[:network_rows],
            "condition_of": self.condition_of[:network_rows],
            "cond_row": self.cond_row[:requests],
            "uncond_row": self.uncond_row[:requests],
            "guidance_scale": self.guidance_scale[:requests],
            "coefficients": self.coefficients[:requests],
            "noise": self.noise[:requests],
        }

    def outputs(self, requests: int) -> dict[str, npt.NDArray[Any]]:
        """Views of the output arrays by name."""
        return {"x_prev": self.x_prev[:requests], "x0": self.x0[:requests]}


@dataclass(frozen=True)
class BackendSettings:
    """How a backend may use the machine.

    Attributes:
        num_threads: of one call.
        max_requests: rows that a call must be able to hold.
    """

    num_threads: int = 1
    max_requests: int = 1


class Backend(Protocol):
    """Evaluates the policy; synchronous, from one thread, and done when a method returns."""

    name: str
    buffers: StepBuffers

    def encode(
        self,
        slot: int,
        observation: Mapping[str, npt.NDArray[Any]],
        instruction: npt.NDArray[np.float32],
    ) -> None:
        """Compute both condition parts of a request into `buffers.conditions` at `slot`.

        Args:
            slot: 0 .. max_requests − 1.
            observation: name → [obs_steps, ...], validated, in the robot's units.
            instruction: float32 [INSTRUCTION_DIM].
        """
        ...

    def step(self, requests: int, network_rows: int) -> None:
        """One denoising step on the first rows of `buffers`: inputs → x_prev and x0."""
        ...

    def to_actions(self, x0: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Clean sample [horizon, action_dim] → actions in the robot's units (a new array)."""
        ...
