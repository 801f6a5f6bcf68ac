"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from client.errors import PolicyError, ServerFaultError
from models.guidance import network_rows

RequestKey = tuple[str, int]
"""(session_id, request_id)."""


@dataclass(slots=True, eq=False)
class EngineRequest:
    """A valid request with everything resolved that a client may leave open; it never changes.

    There are thousands of these and of outcomes a second. A frozen dataclass takes three times as
    long to make, since it sets every field by a call.

    Attributes:
        key: who asked what.
        observation: name → array, validated.
        instruction: float32 [INSTRUCTION_DIM], its embedding.
        arrived_s: when it was read from the socket, engine clock.
        deadline_s: when its answer is due, engine clock.
        num_steps: exactly so many; None leaves it to the planner.
        guidance_scale: w.
        eta: 0 deterministic .. 1 ancestral.
        seed: of its noise.
        best_effort: answer late rather than refuse.
    """

    key: RequestKey
    observation: Mapping[str, npt.NDArray[Any]]
    instruction: npt.NDArray[np.float32]
    arrived_s: float
    deadline_s: float
    num_steps: int | None
    guidance_scale: float
    eta: float
    seed: int
    best_effort: bool

    @property
    def network_rows(self) -> int:
        """Network rows of each of its steps in which guidance acts: the most that one has."""
        return network_rows(self.guidance_scale)

    @property
    def patient(self) -> bool:
        """Whether it is answered however late: a fixed step count, or best effort."""
        return self.num_steps is not None or self.best_effort


@dataclass(slots=True, eq=False)
class Answer:
    """A finished request. Durations in seconds; `timesteps` are those that were executed.

    `rows_per_call` is the mean number of requests in its network calls, itself included.
    """

    request: EngineRequest
    actions: npt.NDArray[np.float32]
    timesteps: tuple[int, ...]
    nfe: int
    rows_per_call: float
    finished_s: float
    queue_s: float
    encode_s: float
    denoise_s: float

    @property
    def deadline_met(self) -> bool:
        """Whether the server was done in time; the client judges for itself on its own clock."""
        return self.finished_s <= self.request.deadline_s


@dataclass(slots=True, eq=False)
class Refusal:
    """A request that gets no actions, and why."""

    request: EngineRequest
    error: PolicyError


Outcome = Answer | Refusal


class Scheduler(Protocol):
    """What a service needs of an engine; `policy_server.engine.Engine` is the one."""

    @property
    def busy(self) -> bool:
        """Whether `advance` has anything to do."""
        ...

    def submit(self, request: EngineRequest) -> list[Refusal]:
        """Admit a request, or refuse it or others at once."""
        ...

    def cancel(self, key: RequestKey) -> list[Refusal]:
        """Give up a request that nobody waits for any more."""
        ...

    def advance(self) -> list[Outcome]:
        """Do a bounded piece of work and return what came to an end."""
        ...

    def fail(self, error: ServerFaultError) -> list[Refusal]:
        """After `advance` has raised: give up whoever is to blame; all, if nobody knows."""
        ...

    def drain(self) -> list[Refusal]:
        """Refuse what has not begun."""
        ...
