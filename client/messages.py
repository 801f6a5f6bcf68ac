"""The messages of the protocol and what each field may hold; no bytes and no sockets here.

A message that exists is valid: every constructor checks its fields, so sender and receiver apply
one set of rules. A request that breaks one raises `InvalidRequestError` with its request_id
(whoever built it is at fault); a reply that does raises a plain `ValueError` (a bug of the server).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from client.errors import DeadlineError, InvalidRequestError, PolicyError, from_wire
from client.field_checks import (
    MAX_INTEGER,
    all_finite,
    boolean,
    dtype_name,
    integer,
    number,
    positive_seconds,
    shown,
    text,
)
from client.specs import ALLOWED_DTYPES, PolicySpec

MAX_SESSION_ID_BYTES = 64
MAX_NAME_BYTES = 200
MAX_ERROR_BYTES = 2000
MAX_DIMENSIONS = 8


def _callers_fault(error: ValueError, request_id: object) -> InvalidRequestError:
    """A failed check of a request as the error that says which request it was."""
    known = None
    if isinstance(request_id, int) and 0 <= request_id <= MAX_INTEGER:
        known = int(request_id)
    return InvalidRequestError(str(error), request_id=known)


def _check_request_id(request_id: object) -> None:
    try:
        integer("request_id", request_id, 0)
    except ValueError as error:
        raise _callers_fault(error, request_id) from None


def _check_array(field: str, array: object) -> None:
    if not isinstance(array, np.ndarray):
        msg = f"{field}: expected a numpy array, got {type(array).__name__}"
        raise ValueError(msg)
    if dtype_name(array.dtype) not in ALLOWED_DTYPES:
        expected = " or ".join(ALLOWED_DTYPES)
        msg = f"{field}: expected dtype {expected}, got {dtype_name(array.dtype)}"
        raise ValueError(msg)
    if not 1 <= array.ndim <= MAX_DIMENSIONS or array.size == 0:
        msg = f"{field}: expected 1..{MAX_DIMENSIONS} dimensions, none 0, got shape {array.shape}"
        raise ValueError(msg)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class ActRequest:
    """Ask for one action_chunk.

    Attributes:
        session_id: one robot; a newer request of a session supersedes one not yet begun.
        request_id: rises within a session; the reply carries it.
        observation: array by name, [obs_steps, …], oldest first.
        instruction: plain words, e.g. "open the drawer".
        budget_s: time from receipt of this message within which the answer is useful.
        num_steps: None lets the server's planner decide; a number is kept exactly.
        guidance_scale: w of Ho & Salimans; None is the checkpoint's default.
        eta: 0 deterministic, 1 ancestral DDPM; None is the checkpoint's default.
        seed: of every random number of this answer; None lets the server draw one.
        best_effort: answer even if the budget cannot be met.
    """

    session_id: str
    request_id: int
    observation: Mapping[str, npt.NDArray[Any]]
    instruction: str
    budget_s: float
    num_steps: int | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    seed: int | None = None
    best_effort: bool = False

    def __post_init__(self) -> None:
        """Check every field; numpy scalars become Python numbers."""
        try:
            checked: dict[str, Any] = {
                "request_id": integer("request_id", self.request_id, 0),
                "session_id": text("session_id", self.session_id, MAX_SESSION_ID_BYTES),
                "budget_s": positive_seconds("budget_s", self.budget_s),
                "best_effort": boolean("best_effort", self.best_effort),
            }
            text("instruction", self.instruction)
            if self.num_steps is not None:
                checked["num_steps"] = integer("num_steps", self.num_steps, 1)
            if self.guidance_scale is not None:
                checked["guidance_scale"] = number("guidance_scale", self.guidance_scale)
            if self.eta is not None:
                checked["eta"] = number("eta", self.eta, 0.0, 1.0)
            if self.seed is not None:
                checked["seed"] = integer("seed", self.seed, 0)
            if not isinstance(self.observation, (dict, Mapping)):  # dict: ten times as fast
                msg = f"observation: expected a mapping of arrays, got {shown(self.observation)}"
                raise ValueError(msg)
            for name, array in self.observation.items():
                text("observation", name, MAX_NAME_BYTES)
                _check_array(f"observation.{name}", array)
        except ValueError as error:
            raise _callers_fault(error, self.request_id) from None
        vars(self).update(checked)  # what is frozen is frozen from here on


@dataclass(frozen=True)
class MetadataRequest:
    """Ask what the server serves."""

    request_id: int

    def __post_init__(self) -> None:
        """Check the field."""
        _check_request_id(self.request_id)


@dataclass(frozen=True)
class PingRequest:
    """Ask for a sign of life; answered also while a model runs."""

    request_id: int

    def __post_init__(self) -> None:
        """Check the field."""
        _check_request_id(self.request_id)


@dataclass(frozen=True)
class CancelRequest:
    """The act request of this session and number is no longer wanted; has no reply of its own."""

    session_id: str
    request_id: int

    def __post_init__(self) -> None:
        """Check both fields."""
        try:
            text("session_id", self.session_id, MAX_SESSION_ID_BYTES)
            vars(self)["request_id"] = integer("request_id", self.request_id, 0)
        except ValueError as error:
            # without the number: an error that had it would pass for the act request's answer
            raise InvalidRequestError(str(error)) from None


# ── replies ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Timing:
    """Where the server's time went, in seconds by the server's clock.

    Attributes:
        queue_s: from receipt to the first work on the observation; a new instruction is encoded
            meanwhile, on another thread.
        encode_s: encoding the observation.
        denoise_s: all network calls of this request.
        total_s: from receipt to the hand-over of the reply; the sum of the others or more.
    """

    queue_s: float
    encode_s: float
    denoise_s: float
    total_s: float

    def __post_init__(self) -> None:
        """Check every field."""
        number("timing.queue_s", self.queue_s, 0.0)
        number("timing.encode_s", self.encode_s, 0.0)
        number("timing.denoise_s", self.denoise_s, 0.0)
        number("timing.total_s", self.total_s, 0.0)


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """The answer to an `ActRequest`.

    Attributes:
        request_id: of the request it answers.
        actions: float32 [horizon, action_dim], in the robot's units.
        num_steps: denoising steps executed.
        timesteps: the timestep of each executed step, first to last.
        nfe: network rows evaluated for this sample.
        rows_per_call: mean number of requests that shared its network calls, itself included.
        deadline_met: the server's verdict, by its own clock.
        model_id: of the checkpoint that answered.
        spec_id: of its specification; another than the metadata's means that it is another robot's.
        guidance_scale: w that was used.
        eta: that was used.
        seed: that was used; asking with it again repeats the answer.
        timing: where the server's time went.
    """

    request_id: int
    actions: npt.NDArray[np.float32]
    num_steps: int
    timesteps: tuple[int, ...]
    nfe: int
    rows_per_call: float
    deadline_met: bool
    model_id: str
    spec_id: str
    guidance_scale: float
    eta: float
    seed: int
    timing: Timing

    def __post_init__(self) -> None:
        """Check every field; numpy scalars become Python numbers."""
        _check_array("actions", self.actions)
        if self.actions.ndim != 2 or dtype_name(self.actions.dtype) != "float32":
            msg = (
                "actions: expected float32 [horizon, action_dim], "
                f"got {dtype_name(self.actions.dtype)} {self.actions.shape}"
            )
            raise ValueError(msg)
        if not all_finite(self.actions):
            raise ValueError("actions: expected finite numbers, got NaN or infinity")
        text("model_id", self.model_id, MAX_NAME_BYTES)
        text("spec_id", self.spec_id, MAX_NAME_BYTES)
        checked: dict[str, Any] = {
            "request_id": integer("request_id", self.request_id, 0),
            "num_steps": integer("num_steps", self.num_steps, 1),
            "timesteps": tuple([integer("timesteps", t, 0) for t in self.timesteps]),
            "nfe": integer("nfe", self.nfe, 0),
            "rows_per_call": number("rows_per_call", self.rows_per_call, 1.0),
            "deadline_met": boolean("deadline_met", self.deadline_met),
            "guidance_scale": number("guidance_scale", self.guidance_scale),
            "eta": number("eta", self.eta, 0.0, 1.0),
            "seed": integer("seed", self.seed, 0),
        }
        if len(checked["timesteps"]) != checked["num_steps"]:
            msg = f"timesteps: expected num_steps={self.num_steps}, got {len(self.timesteps)}"
            raise ValueError(msg)
        vars(self).update(checked)


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request gets for each option that it leaves to the checkpoint.

    Attributes:
        guidance_scale: w of Ho & Salimans.
        eta: 0 deterministic, 1 ancestral DDPM.
        sampler: name, e.g. "ddim".
        grid: name of the timestep grid.
    """

    guidance_scale: float
    eta: float
    sampler: str
    grid: str

    def __post_init__(self) -> None:
        """Check every field."""
        number("defaults.guidance_scale", self.guidance_scale)
        number("defaults.eta", self.eta, 0.0, 1.0)
        text("defaults.sampler", self.sampler, MAX_NAME_BYTES)
        text("defaults.grid", self.grid, MAX_NAME_BYTES)


@dataclass(frozen=True)
class Metadata:
    """What a server serves.

    Attributes:
        model_id: of the checkpoint.
        spec: observation, action, horizon and periods.
        spec_id: the same for the same spec, and for no other; every `ActionChunk` has it.
        min_steps: fewest denoising steps whose actions are any good.
        max_useful_steps: steps beyond which the actions get no better.
        max_steps: T, the most that a request may ask for.
        defaults: of the options that a request may leave out.
        limits: what the server accepts, by name, e.g. max_instruction_bytes.
        protocol_version: that the server speaks.
        backend: name of what runs the network.
        server_version: of the server's software.
    """

    model_id: str
    spec: PolicySpec
    spec_id: str
    min_steps: int
    max_useful_steps: int
    max_steps: int
    defaults: SamplingDefaults
    limits: Mapping[str, int | float]
    protocol_version: int
    backend: str
    server_version: str

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("model_id", "spec_id", "backend", "server_version"):
            text(f"metadata.{field}", getattr(self, field), MAX_NAME_BYTES)
        integer("metadata.protocol_version", self.protocol_version, 1)
        integer("metadata.max_steps", self.max_steps, 1)
        integer("metadata.max_useful_steps", self.max_useful_steps, 1, self.max_steps)
        integer("metadata.min_steps", self.min_steps, 1, self.max_useful_steps)
        if not isinstance(self.limits, Mapping):
            msg = f"metadata.limits: expected a mapping, got {shown(self.limits)}"
            raise ValueError(msg)
        object.__setattr__(self, "limits", dict(self.limits))
        for name, limit in self.limits.items():
            text("metadata.limits", name, MAX_NAME_BYTES)
            number(f"metadata.limits.{name}", limit)


@dataclass(frozen=True)
class MetadataReply:
    """The answer to a `MetadataRequest`."""

    request_id: int
    metadata: Metadata

    def __post_init__(self) -> None:
        """Check the field that `Metadata` has not checked."""
        integer("request_id", self.request_id, 0)


@dataclass(frozen=True)
class Pong:
    """The answer to a `PingRequest`."""

    request_id: int

    def __post_init__(self) -> None:
        """Check the field."""
        integer("request_id", self.request_id, 0)


@dataclass(frozen=True)
class ErrorReply:
    """Why there is no answer.

    Attributes:
        request_id: of the request; None if it could not be read.
        code: `PolicyError.code` of one of the classes in client/errors.py.
        message: for people: what, where, expected, got, remedy.
        soonest_s: with code "deadline": the smallest budget that could have been met.
    """

    request_id: int | None
    code: str
    message: str
    soonest_s: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if self.request_id is not None:
            integer("request_id", self.request_id, 0)
        text("code", self.code, MAX_NAME_BYTES)
        text("message", self.message, MAX_ERROR_BYTES)
        if self.soonest_s is not None:
            number("soonest_s", self.soonest_s, low=0.0)

    @classmethod
    def from_error(cls, error: PolicyError) -> ErrorReply:
        """What a server answers for an error that it raised."""
        message = str(error)
        if len(message) > MAX_ERROR_BYTES or not message.isascii():
            message = message.encode(errors="replace")[:MAX_ERROR_BYTES].decode(errors="ignore")
        soonest_s = error.soonest_s if isinstance(error, DeadlineError) else None
        return cls(error.request_id, error.code, message.strip() or error.code, soonest_s)

    def to_error(self) -> PolicyError:
        """What a client raises for it."""
        return from_wire(
            self.code, self.message, request_id=self.request_id, soonest_s=self.soonest_s
        )


REQUESTS = (ActRequest, CancelRequest, MetadataRequest, PingRequest)
Request = ActRequest | CancelRequest | MetadataRequest | PingRequest
Reply = ActionChunk | MetadataReply | Pong | ErrorReply
Message = Request | Reply
