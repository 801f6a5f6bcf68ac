"""What the engine needs of a backend, and the arrays they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.guidance import BranchRows


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
        self.rows = BranchRows.room_for(max_requests)
        self.conditions = np.zeros((2 * max_requests, film_dim), np.float32)
        self.x_prev = np.zeros(chunks, np.float32)
        self.x0 = np.zeros(chunks, np.float32)

    def lay_out(self, guidance_scale: npt.NDArray[np.float32], slots: npt.NDArray[np.int64]) -> int:
        """Fill the index arrays for requests in these slots; return the number of network rows.

        Args:
            guidance_scale: float32 [requests], w.
            slots: int64 [requests].
        """
        self.guidance_scale[: len(slots)] = guidance_scale
        return self.rows.fill(guidance_scale, slots)

    def go_on(self, requests: int) -> None:
        """Make what a call has brought the input of the next one, of the same requests."""
        self.x_t[:requests] = self.x_prev[:requests]
        self.x0_prev[:requests] = self.x0[:requests]

    def inputs(self, requests: int, network_rows: int) -> dict[str, npt.NDArray[Any]]:
        """Views of the input arrays by the name they have in `GuidedStep.forward`, in its order."""
        return {
            "x_t": self.x_t[:requests],
            "x0_prev": self.x0_prev[:requests],
            "timesteps": self.timesteps[:requests],
            "conditions": self.conditions,
            "request_of": self.rows.request_of[:network_rows],
            "condition_of": self.rows.condition_of[:network_rows],
            "cond_row": self.rows.cond_row[:requests],
            "uncond_row": self.rows.uncond_row[:requests],
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
    """Evaluates the policy; synchronous, from one thread, and done when a method returns.

    Attributes:
        name: as in `--backend`.
        num_threads: of a call.
        buffers: what a step reads and writes.
    """

    name: str
    num_threads: int
    buffers: StepBuffers

    def encode(
        self,
        slots: Sequence[int],
        observations: Sequence[Mapping[str, npt.NDArray[Any]]],
        instructions: Sequence[npt.NDArray[np.float32]],
    ) -> None:
        """Compute both condition parts of each request in one network call.

        They are written into rows 2·slot (conditional) and 2·slot + 1 of `buffers.conditions`;
        other rows stay as they are.

        Args:
            slots: each 0 .. max_requests − 1, all different, at least one.
            observations: of each request: name → [obs_steps, ...], validated, in the robot's units.
            instructions: of each request: float32 [INSTRUCTION_DIM].
        """
        ...

    def step(self, requests: int, network_rows: int) -> None:
        """One denoising step on the first rows of `buffers`: inputs → x_prev and x0."""
        ...

    def to_actions(self, x0: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Clean samples [n, horizon, action_dim] → actions in the robot's units (a new array)."""
        ...
