"""The messages of the protocol and what each field may hold; no bytes and no sockets here.

A message that exists is valid. The types of its fields say what they may hold, and msgspec holds
to that whatever is given to a constructor or comes from a socket, so sender and receiver apply one
set of rules; what types cannot say is in the `check` of each class. A request that breaks a rule
raises `InvalidRequestError` with its request_id (whoever built it is at fault); a reply that does
raises a plain `ValueError` (a bug of the server).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from client.errors import DeadlineError, InvalidRequestError, PolicyError, from_wire
from client.field_checks import (
    MAX_INTEGER,
    all_finite,
    dtype_name,
    integer,
    number,
    shown,
    text,
)
from client.specs import ALLOWED_DTYPES, PolicySpec

MAX_SESSION_ID_BYTES = 64
MAX_NAME_BYTES = 200
MAX_ERROR_BYTES = 2000
MAX_DIMENSIONS = 8


_LARGEST = sys.float_info.max  # with these bounds a number is neither NaN nor infinite
Index: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Number: TypeAlias = Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
Share: TypeAlias = Annotated[float, Meta(ge=0.0, le=1.0)]
Ratio: TypeAlias = Annotated[float, Meta(ge=1.0, le=_LARGEST)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0.0, le=_LARGEST)]
PositiveSeconds: TypeAlias = Annotated[float, Meta(gt=0.0, le=_LARGEST)]

_SAID = re.compile(r"(.*) - at `\$\.?(.+)`")
_MOST_SAID = 150


def explained(error: Exception, values: Mapping[Any, Any]) -> str:
    """What msgspec says of a message and what was got, short enough to flood no log.

    Args:
        error: of msgspec.
        values: of the message, by field.
    """
    # it may hold names of a stranger's choice, which must not write to a terminal what they like
    printable = "".join(c if c.isprintable() else "?" for c in str(error))
    said = _SAID.fullmatch(printable)
    if said is None:  # of a field that is missing or unknown
        return f"header: {printable[:_MOST_SAID]}"
    what, where = (part.replace("`", "")[:_MOST_SAID] for part in said.groups())
    got = values.get(re.split(r"[.\[]", where)[0])
    if isinstance(got, float) and not math.isfinite(got):
        what = "Expected a finite number"
    between = " " if ", got " in what else ", got "  # of a wrong type, msgspec says which it was
    return f"{where}: {what[0].lower()}{what[1:]}{between}{shown(got)}"


M = TypeVar("M", bound="_Message")


def _held_to_types(cls: type[M]) -> type[M]:
    """Decorates a dataclass of a message: what a header holds of it is made a type of msgspec."""
    types = get_type_hints(cls, include_extras=True)
    of_header = [
        (f.name, types[f.name]) if f.default is MISSING else (f.name, types[f.name], f.default)
        for f in fields(cls)  # type: ignore[arg-type]  # it is one when this decorates it
        if f.name not in _ARRAYS
    ]
    cls.header = msgspec.defstruct(cls.__name__, of_header, kw_only=True)
    return cls


_ARRAYS = ("observation", "actions")  # are frames of their own


class _Message:
    """What all messages share; each is a frozen dataclass of its own fields.

    Attributes:
        header: the same fields, less arrays, as a type of msgspec.
    """

    header: ClassVar[type[msgspec.Struct]]
    request_id: int | None

    def __post_init__(self) -> None:
        """Check every field; numpy scalars become Python numbers.

        Raises:
            ValueError: one is of another type, or out of range.
        """
        given = vars(self)
        try:
            checked = msgspec.convert(given, self.header)
        except ValueError:
            plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items()}
            try:
                checked = msgspec.convert(plain, self.header)
            except ValueError as error:
                raise ValueError(explained(error, plain)) from None
        given.update(msgspec.structs.asdict(checked))  # what is frozen is so from here on
        self.check()

    def check(self) -> None:
        """Raises `ValueError` for what breaks a rule that no type can say."""


class _Request(_Message):
    def __post_init__(self) -> None:
        """Check every field; numpy scalars become Python numbers.

        Raises:
            InvalidRequestError: one is of another type, or out of range.
        """
        try:
            super().__post_init__()
        except ValueError as error:
            raise InvalidRequestError(str(error), request_id=self._known_id()) from None

    def _known_id(self) -> int | None:
        """The request_id, if it can be one."""
        given = self.request_id
        if not isinstance(given, (int, np.integer)) or isinstance(given, bool):
            return None
        return int(given) if 0 <= given <= MAX_INTEGER else None


def _check_array(field: str, name: str | None, array: object) -> None:
    if not isinstance(array, np.ndarray):
        got = type(array).__name__
        expected = "a numpy array"
    elif dtype_name(array.dtype) not in ALLOWED_DTYPES:
        expected = f"dtype {' or '.join(ALLOWED_DTYPES)}"
        got = dtype_name(array.dtype)
    elif not 1 <= array.ndim <= MAX_DIMENSIONS or array.size == 0:
        expected = f"1..{MAX_DIMENSIONS} dimensions, none 0"
        got = f"shape {array.shape}"
    else:
        return
    msg = f"{field if name is None else f'{field}.{name}'}: expected {expected}, got {got}"
    raise ValueError(msg)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


@_held_to_types
@dataclass(frozen=True, eq=False)
class ActRequest(_Request):
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
    request_id: Index
    observation: Mapping[str, npt.NDArray[Any]]
    instruction: str
    budget_s: PositiveSeconds
    num_steps: Count | None = None
    guidance_scale: Number | None = None
    eta: Share | None = None
    seed: Index | None = None
    best_effort: bool = False

    def check(self) -> None:
        """See `_Message`."""
        text("session_id", self.session_id, MAX_SESSION_ID_BYTES)
        text("instruction", self.instruction)
        if not isinstance(self.observation, (dict, Mapping)):  # dict: ten times as fast
            msg = f"observation: expected a mapping of arrays, got {shown(self.observation)}"
            raise ValueError(msg)
        for name, array in self.observation.items():
            text("observation", name, MAX_NAME_BYTES)
            _check_array("observation", name, array)


@_held_to_types
@dataclass(frozen=True)
class MetadataRequest(_Request):
    """Ask what the server serves."""

    request_id: Index


@_held_to_types
@dataclass(frozen=True)
class PingRequest(_Request):
    """Ask for a sign of life; answered also while a model runs."""

    request_id: Index


@_held_to_types
@dataclass(frozen=True)
class CancelRequest(_Request):
    """The act request of this session and number is no longer wanted; has no reply of its own."""

    session_id: str
    request_id: Index

    def check(self) -> None:
        """See `_Message`."""
        text("session_id", self.session_id, MAX_SESSION_ID_BYTES)

    def _known_id(self) -> None:
        """None: an error that had it would pass for the act request's answer."""


# ── replies ──────────────────────────────────────────────────────────────────────────────────────


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the server's time went, in seconds by the server's clock.

    Attributes:
        queue_s: from receipt to the first work on the observation; a new instruction is encoded
            meanwhile, on another thread.
        encode_s: encoding the observation.
        denoise_s: all network calls of this request.
        total_s: from receipt to the hand-over of the reply; the sum of the others or more.
    """

    queue_s: Seconds
    encode_s: Seconds
    denoise_s: Seconds
    total_s: Seconds

    def __post_init__(self) -> None:
        """Check every field: msgspec takes one that exists for checked."""
        number("timing.queue_s", self.queue_s, 0.0)
        number("timing.encode_s", self.encode_s, 0.0)
        number("timing.denoise_s", self.denoise_s, 0.0)
        number("timing.total_s", self.total_s, 0.0)


@_held_to_types
@dataclass(frozen=True, eq=False)
class ActionChunk(_Message):
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

    request_id: Index
    actions: npt.NDArray[np.float32]
    num_steps: Count
    timesteps: tuple[Index, ...]
    nfe: Index
    rows_per_call: Ratio
    deadline_met: bool
    model_id: str
    spec_id: str
    guidance_scale: Number
    eta: Share
    seed: Index
    timing: Timing

    def check(self) -> None:
        """See `_Message`; above all, what is no number is no action."""
        actions = self.actions
        _check_array("actions", None, actions)
        if actions.ndim != 2 or dtype_name(actions.dtype) != "float32":
            msg = (
                "actions: expected float32 [horizon, action_dim], "
                f"got {dtype_name(actions.dtype)} {actions.shape}"
            )
            raise ValueError(msg)
        if not all_finite(actions):
            raise ValueError("actions: expected finite numbers, got NaN or infinity")
        text("model_id", self.model_id, MAX_NAME_BYTES)
        text("spec_id", self.spec_id, MAX_NAME_BYTES)
        if len(self.timesteps) != self.num_steps:
            msg = f"timesteps: expected num_steps={self.num_steps}, got {len(self.timesteps)}"
            raise ValueError(msg)


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


@_held_to_types
@dataclass(frozen=True)
class MetadataReply(_Message):
    """The answer to a `MetadataRequest`."""

    request_id: Index
    metadata: Metadata


@_held_to_types
@dataclass(frozen=True)
class Pong(_Message):
    """The answer to a `PingRequest`."""

    request_id: Index


@_held_to_types
@dataclass(frozen=True)
class ErrorReply(_Message):
    """Why there is no answer.

    Attributes:
        request_id: of the request; None if it could not be read.
        code: `PolicyError.code` of one of the classes in client/errors.py.
        message: for people: what, where, expected, got, remedy.
        soonest_s: with code "deadline": the smallest budget that could have been met.
    """

    request_id: Index | None
    code: str
    message: str
    soonest_s: Seconds | None = None

    def check(self) -> None:
        """See `_Message`."""
        text("code", self.code, MAX_NAME_BYTES)
        text("message", self.message, MAX_ERROR_BYTES)

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
