"""Bytes ↔ typed messages, as docs/protocol.md lays them out.

A message is a list of frames: a msgpack header, then one raw frame per array. Arrays are never
copied, in either direction. Whatever comes from a socket is checked against `WireLimits` and the
types of the fields before anything is built from it, and nothing that it contains is ever executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Union

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from client.errors import InvalidRequestError, PolicyError, ProtocolError
from client.field_checks import MAX_INTEGER, dtype_name, integer, shown, text
from client.messages import (
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    REQUESTS,
    ActionChunk,
    ActRequest,
    CancelRequest,
    Count,
    ErrorReply,
    Message,
    Metadata,
    MetadataReply,
    MetadataRequest,
    PingRequest,
    Pong,
    SamplingDefaults,
    Timing,
    explained,
)
from client.specs import ALLOWED_DTYPES, PolicySpec

__all__ = [
    "PROTOCOL_VERSION",
    "REPLY_LIMITS",
    "ActRequest",
    "ActionChunk",
    "CancelRequest",
    "ErrorReply",
    "Message",
    "Metadata",
    "MetadataReply",
    "MetadataRequest",
    "PingRequest",
    "Pong",
    "SamplingDefaults",
    "Timing",
    "WireLimits",
    "decode",
    "encode",
]

PROTOCOL_VERSION = 1

_CLASSES: dict[str, type[Any]] = {
    "act": ActRequest,
    "cancel": CancelRequest,
    "metadata": MetadataRequest,
    "ping": PingRequest,
    "action_chunk": ActionChunk,
    "metadata_reply": MetadataReply,
    "pong": Pong,
    "error": ErrorReply,
}
_TYPES = {cls: name for name, cls in _CLASSES.items()}
_WIRE_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ALLOWED_DTYPES}

_Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_BYTES)]
_Shape = Annotated[list[Count], Meta(min_length=1, max_length=MAX_DIMENSIONS)]
_Array = tuple[_Name, Literal["float32", "uint8"], _Shape]


def _header_type(kind: str, cls: type[Any]) -> type[msgspec.Struct]:
    """What frame 0 of such a message must be: its fields and no others."""
    more: list[tuple[str, Any] | tuple[str, Any, Any]] = [("protocol", Literal[1])]
    if cls in (ActRequest, ActionChunk):
        more.append(("arrays", list[_Array], []))
    if cls is MetadataReply:
        more.append(("metadata", dict[str, Any]))  # some of its keys are of its own choice
    return msgspec.defstruct(
        cls.__name__,
        more,
        bases=(cls.header,),
        tag_field="type",
        tag=kind,
        kw_only=True,
        forbid_unknown_fields=True,
    )


_CLASS_OF = {_header_type(kind, cls): cls for kind, cls in _CLASSES.items()}
_DECODER = msgspec.msgpack.Decoder(Union[tuple(_CLASS_OF)])  # noqa: UP007 - known when this runs
_ENCODER = msgspec.msgpack.Encoder()
_NOT_DECODED = (ValueError, RecursionError)  # what msgspec raises; the second for deep nesting

Frame = bytes | memoryview


@dataclass(frozen=True)
class WireLimits:
    """The largest message that is accepted.

    Attributes:
        max_frames: header included.
        max_header_bytes: of the msgpack header.
        max_array_bytes: of one array.
        max_instruction_bytes: of an instruction in UTF-8.
    """

    max_frames: int = 17
    max_header_bytes: int = 65_536
    max_array_bytes: int = 16_777_216
    max_instruction_bytes: int = 1000

    def __post_init__(self) -> None:
        """Check every field."""
        for field, value in vars(self).items():
            integer(f"WireLimits.{field}", value, 1)

    @classmethod
    def of_requests(cls, spec: PolicySpec) -> WireLimits:
        """What a server of this policy takes in: every request that fits its specification.

        Arrays may be four times as large as they should be, and headers ten times: what is wrong
        is answered by name then, and not by the end of the connection.
        """
        sizes = [
            math.prod(array.shape) * _WIRE_DTYPES[array.dtype].itemsize
            for array in spec.observation.values()
        ]
        header_bytes = 16_384 + 300 * len(sizes)  # an instruction has 1000 at most, a name 200
        return cls(
            max_frames=max(cls.max_frames, 1 + len(sizes)),
            max_header_bytes=header_bytes,
            max_array_bytes=max(header_bytes, 4 * max(sizes)),
        )

    @property
    def max_message_bytes(self) -> int:
        """Of all frames together."""
        return self.max_header_bytes + (self.max_frames - 1) * self.max_array_bytes

    @property
    def max_frame_bytes(self) -> int:
        """For ZMQ_MAXMSGSIZE, so that a larger frame is never received at all."""
        return max(self.max_header_bytes, self.max_array_bytes)


REPLY_LIMITS = WireLimits()
"""What a client accepts."""


def encode(message: Message, limits: WireLimits = REPLY_LIMITS) -> list[Frame]:
    """Frames of a message; array frames are views of the arrays, which must outlive the sending.

    Raises:
        InvalidRequestError: a request is larger than `limits` allow.
        ValueError: a reply is (`InvalidRequestError` is one, too).
    """
    header = {"protocol": PROTOCOL_VERSION, "type": _TYPES[type(message)], **vars(message)}
    arrays: Mapping[str, npt.NDArray[Any]] = {}
    match message:
        case ActRequest():
            arrays = header.pop("observation")
        case ActionChunk():
            arrays = {"actions": header.pop("actions")}
        case MetadataReply():
            header["metadata"] = asdict(message.metadata)
    frames: list[Frame] = []
    if arrays:
        header["arrays"] = described = []
        for name, array in arrays.items():
            described.append((name, dtype_name(array.dtype), array.shape))
            frames.append(_array_frame(array))
    frames.insert(0, _ENCODER.encode(header))
    try:
        _check_header_bytes(frames[0], limits)
        _check_sizes(header, frames, limits)
    except ValueError as error:
        if isinstance(message, REQUESTS):
            raise InvalidRequestError(str(error), request_id=message.request_id) from None
        raise
    return frames


def decode(frames: Sequence[Frame], limits: WireLimits = REPLY_LIMITS) -> Message:
    """The message in `frames`; its arrays are read-only views of the frames.

    Raises:
        InvalidRequestError: a request that is readable but breaks a rule; carries the request_id
            if that is readable.
        ProtocolError: not a message, of another protocol version, or a reply that breaks a rule.
    """
    if not frames:
        raise ProtocolError("message: expected at least a header frame, got no frame")
    try:
        _check_header_bytes(frames[0], limits)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    try:
        header = _DECODER.decode(frames[0])
    except _NOT_DECODED as error:
        raise _undecodable(frames[0], error) from None
    cls, values = _CLASS_OF[type(header)], msgspec.structs.asdict(header)
    try:
        return _message(cls, values, frames, limits)
    except ValueError as error:
        raise _fault(cls, str(error), values) from None


def _check_header_bytes(header: Frame, limits: WireLimits) -> None:
    if len(header) > limits.max_header_bytes:
        msg = f"header: expected at most {limits.max_header_bytes} bytes, got {len(header)}"
        raise ValueError(msg)


def _check_sizes(header: Mapping[str, Any], frames: Sequence[Frame], limits: WireLimits) -> None:
    """Of everything but the header as a whole."""
    if len(frames) > limits.max_frames:
        msg = f"message: expected at most {limits.max_frames} frames, got more"
        raise ValueError(msg)
    largest = max(map(len, frames[1:]), default=0)
    if largest > limits.max_array_bytes:
        msg = f"arrays: expected at most {limits.max_array_bytes} bytes, got {largest}"
        raise ValueError(msg)
    instruction, most = header.get("instruction", ""), limits.max_instruction_bytes
    if len(instruction) > most // 4:  # a character has four at most
        text("instruction", instruction, most)


# ── messages → frames ────────────────────────────────────────────────────────────────────────────


def _array_frame(array: npt.NDArray[Any]) -> memoryview:
    """The array's own memory if it is laid out as the wire has it, else that of a copy."""
    dtype = _WIRE_DTYPES[dtype_name(array.dtype)]
    if array.dtype != dtype or not array.flags.c_contiguous:
        array = np.ascontiguousarray(array, dtype=dtype)
    return array.data.cast("B")


# ── frames → messages ────────────────────────────────────────────────────────────────────────────


def _message(
    cls: type[Any], values: dict[str, Any], frames: Sequence[Frame], limits: WireLimits
) -> Message:
    """Raises `ValueError` for whatever breaks a rule that the types of a header cannot say."""
    _check_sizes(values, frames, limits)
    del values["protocol"]
    arrays = _arrays(values.pop("arrays", ()), frames)
    if cls is ActRequest:
        values["observation"] = arrays
    elif cls is ActionChunk:
        if list(arrays) != ["actions"]:
            msg = f"arrays: expected exactly actions, got {shown(list(arrays))}"
            raise ValueError(msg)
        values["actions"] = arrays["actions"]
    elif cls is MetadataReply:
        values["metadata"] = _metadata(values["metadata"])
    # as the constructor does it, but that checks what the header's type has said already
    message: Message = object.__new__(cls)
    vars(message).update(values)
    message.check()
    return message


def _arrays(
    described: Sequence[tuple[str, str, list[int]]], frames: Sequence[Frame]
) -> dict[str, npt.NDArray[Any]]:
    """Read-only views of the frames, of which each must have the size that its shape has."""
    if len(described) != len(frames) - 1:
        msg = f"arrays: expected one frame for each of {len(described)}, got {len(frames) - 1}"
        raise ValueError(msg)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for (name, dtype, shape), frame in zip(described, frames[1:], strict=True):
        if name in arrays:
            msg = f"arrays: expected different names, got {shown(name)} twice"
            raise ValueError(msg)
        wire_dtype = _WIRE_DTYPES[dtype]
        size = math.prod(shape) * wire_dtype.itemsize
        if size != len(frame):
            msg = (
                f"arrays.{shown(name)}: expected a frame of {size} bytes for {dtype} {shape}, "
                f"got {len(frame)}"
            )
            raise ValueError(msg)
        array: npt.NDArray[Any] = np.ndarray(shape, wire_dtype, frame)
        array.setflags(write=False)
        arrays[name] = array
    return arrays


def _metadata(values: dict[str, Any]) -> Metadata:
    try:
        defaults = SamplingDefaults(**values["defaults"])
        spec = PolicySpec.from_dict(values["spec"])
        return Metadata(**{**values, "defaults": defaults, "spec": spec})
    except (KeyError, TypeError) as error:
        msg = f"metadata: expected the fields of docs/protocol.md, got {str(error)[:200]}"
        raise ValueError(msg) from None


def _undecodable(header: Frame, error: Exception) -> PolicyError:
    """Whose fault it is that this header is none that we know, and what to tell them."""
    try:
        values = msgspec.msgpack.decode(header)
    except _NOT_DECODED as reason:
        return ProtocolError(f"header: expected one msgpack map, got {reason}")
    if not isinstance(values, dict):
        return ProtocolError(f"header: expected a msgpack map, got {type(values).__name__}")
    version, kind = values.get("protocol"), values.get("type")
    if version != PROTOCOL_VERSION or isinstance(version, bool):
        msg = (
            f"protocol: this side speaks version {PROTOCOL_VERSION}, the other {shown(version)}; "
            "install the same version of policy_server on both"
        )
        return ProtocolError(msg, request_id=_known_id(values))
    cls = _CLASSES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        msg = f"type: expected one of {list(_CLASSES)}, got {shown(kind)}"
        return ProtocolError(msg, request_id=_known_id(values))
    return _fault(cls, explained(error, values), values)


def _fault(cls: type[Any], said: str, values: Mapping[Any, Any]) -> PolicyError:
    """The error that says so much of a message of this class."""
    if cls is CancelRequest:  # an error that had its number would pass for the act request's answer
        return InvalidRequestError(said)
    error: type[PolicyError] = InvalidRequestError if cls in REQUESTS else ProtocolError
    return error(said, request_id=_known_id(values))


def _known_id(values: Mapping[Any, Any]) -> int | None:
    given = values.get("request_id")
    return given if type(given) is int and 0 <= given <= MAX_INTEGER else None
