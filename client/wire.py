"""Bytes ↔ typed messages, as docs/protocol.md lays them out; the only file that imports msgpack.

A message is a list of frames: a msgpack header, then one raw frame per array. Arrays are never
copied, in either direction. Whatever comes from a socket is checked against `WireLimits` before
anything is built from it, and nothing that it contains is ever executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt

from client.errors import InvalidRequestError, PolicyError, ProtocolError
from client.field_checks import MAX_INTEGER, dtype_name, integer, shown, text
from client.messages import (
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    REQUESTS,
    ActionChunk,
    ActRequest,
    CancelRequest,
    ErrorReply,
    Message,
    Metadata,
    MetadataReply,
    MetadataRequest,
    PingRequest,
    Pong,
    SamplingDefaults,
    Timing,
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
_ARRAY_FIELDS = {ActRequest: "observation", ActionChunk: "actions"}
_FIELDS = {
    cls: (
        frozenset(field.name for field in fields(cls)),
        {field.name: field.default for field in fields(cls) if field.default is not MISSING},
    )
    for cls in (*_CLASSES.values(), Timing, SamplingDefaults, Metadata)
}
"""Names of a class's fields, and the defaults of those that have one."""
_WIRE_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ALLOWED_DTYPES}

Frame = bytes | memoryview
T = TypeVar("T")


@dataclass(frozen=True)
class WireLimits:
    """The largest message that is accepted.

    While a hostile header is unpacked, up to 1024 nested lists of max_items pointers each can exist
    (1024 is msgpack's depth limit); so requests get by with few.

    Attributes:
        max_frames: header included.
        max_header_bytes: of the msgpack header.
        max_array_bytes: of one array.
        max_instruction_bytes: of an instruction in UTF-8.
        max_items: entries of any list or map in the header.
    """

    max_frames: int = 17
    max_header_bytes: int = 65_536
    max_array_bytes: int = 16_777_216
    max_instruction_bytes: int = 1000
    max_items: int = 64

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


REPLY_LIMITS = WireLimits(max_items=4096)
"""What a client accepts: a reply lists every timestep, and metadata the name of every number."""


def encode(message: Message, limits: WireLimits = REPLY_LIMITS) -> list[Frame]:
    """Frames of a message; array frames are views of the arrays, which must outlive the sending.

    Raises:
        InvalidRequestError: a request is larger than `limits` allow.
        ValueError: a reply is (`InvalidRequestError` is one, too).
    """
    try:
        return _encode(message, limits)
    except ValueError as error:
        if isinstance(message, REQUESTS):
            raise InvalidRequestError(str(error), request_id=message.request_id) from None
        raise


def decode(frames: Sequence[Frame], limits: WireLimits = REPLY_LIMITS) -> Message:
    """The message in `frames`; its arrays are read-only views of the frames.

    Raises:
        InvalidRequestError: a request that is readable but breaks a rule; carries the request_id
            if that is readable.
        ProtocolError: not a message, of another protocol version, or a reply that breaks a rule.
    """
    header = _unpack(frames, limits)
    given_id = header.get("request_id")
    request_id = given_id if type(given_id) is int and 0 <= given_id <= MAX_INTEGER else None
    version = header.get("protocol")
    if version != PROTOCOL_VERSION or isinstance(version, bool):
        msg = (
            f"protocol: this side speaks version {PROTOCOL_VERSION}, the other {shown(version)}; "
            "install the same version of policy_server on both"
        )
        raise ProtocolError(msg, request_id=request_id)
    kind = header.get("type")
    cls = _CLASSES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        msg = f"type: expected one of {list(_CLASSES)}, got {shown(kind)}"
        raise ProtocolError(msg, request_id=request_id)
    if cls is CancelRequest:
        request_id = None  # an error that had it would pass for the act request's answer
    try:
        return _build_message(cls, header, frames, limits)
    except ValueError as error:
        fault: type[PolicyError] = InvalidRequestError if cls in REQUESTS else ProtocolError
        raise fault(str(error), request_id=request_id) from None


# ── messages → frames ────────────────────────────────────────────────────────────────────────────


def _encode(message: Message, limits: WireLimits) -> list[Frame]:
    header = {"protocol": PROTOCOL_VERSION, "type": _TYPES[type(message)], **vars(message)}
    arrays: Mapping[str, npt.NDArray[Any]] = {}
    match message:
        case ActRequest():
            text("instruction", message.instruction, limits.max_instruction_bytes)
            arrays = header.pop("observation")
        case ActionChunk():
            arrays = {"actions": header.pop("actions")}
            header["timing"] = vars(message.timing)
        case MetadataReply():
            header["metadata"] = asdict(message.metadata)
    if arrays:
        header["arrays"] = [[name, dtype_name(a.dtype), a.shape] for name, a in arrays.items()]
    packed = msgpack.packb(header)
    if len(packed) > limits.max_header_bytes:
        msg = f"header: expected at most {limits.max_header_bytes} bytes, got {len(packed)}"
        raise ValueError(msg)
    _check_frame_count(1 + len(arrays), limits)
    for name, array in arrays.items():
        _check_array_bytes(name, array.nbytes, limits)
    return [packed, *map(_array_frame, arrays.values())]


def _array_frame(array: npt.NDArray[Any]) -> memoryview:
    """The array's own memory if it is laid out as the wire has it, else that of a copy."""
    dtype = _WIRE_DTYPES[dtype_name(array.dtype)]
    if array.dtype != dtype or not array.flags.c_contiguous:
        array = np.ascontiguousarray(array, dtype=dtype)
    return array.data.cast("B")


# ── frames → messages ────────────────────────────────────────────────────────────────────────────


def _unpack(frames: Sequence[Frame], limits: WireLimits) -> dict[object, Any]:
    """The header as a map; nothing of it has been checked but its size."""
    if not frames:
        raise ProtocolError("message: expected at least a header frame, got no frame")
    size = len(frames[0])
    if size > limits.max_header_bytes:
        msg = f"header: expected at most {limits.max_header_bytes} bytes, got {size}"
        raise ProtocolError(msg)
    try:
        header = msgpack.unpackb(
            frames[0],
            raw=False,
            strict_map_key=True,
            max_str_len=limits.max_header_bytes,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=limits.max_items,
            max_map_len=limits.max_items,
        )
    except (ValueError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        msg = f"header: expected one msgpack map within the limits, got {reason}"
        raise ProtocolError(msg) from None
    if not isinstance(header, dict):
        msg = f"header: expected a msgpack map, got {type(header).__name__}"
        raise ProtocolError(msg)
    return header


def _build_message(
    cls: type[Any], header: dict[object, Any], frames: Sequence[Frame], limits: WireLimits
) -> Message:
    """Raises `ValueError` for whatever breaks a rule."""
    values = header
    del values["protocol"], values["type"]
    array_field = _ARRAY_FIELDS.get(cls)
    if array_field is None and "arrays" in values:
        raise ValueError("arrays: expected none in this type of message")
    if array_field in values:
        msg = f"{array_field}: expected as frames that `arrays` lists, got it in the header"
        raise ValueError(msg)
    arrays = _arrays(values.pop("arrays", []), frames, limits)
    if cls is ActRequest:
        values["observation"] = arrays
        if "instruction" in values:
            text("instruction", values["instruction"], limits.max_instruction_bytes)
    elif cls is ActionChunk:
        if list(arrays) != ["actions"]:
            msg = f"arrays: expected exactly actions, got {shown(list(arrays))}"
            raise ValueError(msg)
        values["actions"] = arrays["actions"]
        values["timing"] = _build(Timing, "timing", values.get("timing"))
        if not isinstance(values.get("timesteps"), list):
            msg = f"timesteps: expected a list, got {shown(values.get('timesteps'))}"
            raise ValueError(msg)
    elif cls is MetadataReply:
        values["metadata"] = _metadata(values.get("metadata"))
    message: Message = _build(cls, "header", values)
    return message


def _metadata(values: object) -> Metadata:
    if not isinstance(values, dict):
        msg = f"metadata: expected a map, got {shown(values)}"
        raise ValueError(msg)
    defaults = _build(SamplingDefaults, "metadata.defaults", values.get("defaults"))
    spec = PolicySpec.from_dict(values.get("spec"))
    return _build(Metadata, "metadata", {**values, "defaults": defaults, "spec": spec})


def _build(cls: type[T], where: str, values: object) -> T:
    """An instance of the dataclass `cls` from a map that has its fields and no others."""
    if not isinstance(values, dict):
        msg = f"{where}: expected a map, got {shown(values)}"
        raise ValueError(msg)
    known, defaults = _FIELDS[cls]
    if not values.keys() <= known:
        unknown = [key for key in values if key not in known]
        msg = f"{where}: unknown {shown(unknown)}, expected {sorted(known)}"
        raise ValueError(msg)
    whole = {**defaults, **values}
    if len(whole) < len(known):
        msg = f"{where}: missing {sorted(known - whole.keys())}"
        raise ValueError(msg)
    # as the constructor does it, but that sets each field of a frozen class by a call
    instance = object.__new__(cls)
    vars(instance).update(whole)
    instance.__post_init__()  # type: ignore[attr-defined]
    return instance


def _arrays(
    descriptors: object, frames: Sequence[Frame], limits: WireLimits
) -> dict[str, npt.NDArray[Any]]:
    _check_frame_count(len(frames), limits)
    if not isinstance(descriptors, list):
        msg = f"arrays: expected a list, got {shown(descriptors)}"
        raise ValueError(msg)
    if len(descriptors) != len(frames) - 1:
        msg = f"arrays: expected one frame for each of {len(descriptors)}, got {len(frames) - 1}"
        raise ValueError(msg)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for descriptor, frame in zip(descriptors, frames[1:], strict=True):
        if not isinstance(descriptor, list) or len(descriptor) != 3:
            msg = f"arrays: expected entries [name, dtype, shape], got {shown(descriptor)}"
            raise ValueError(msg)
        name = text("arrays: name", descriptor[0], MAX_NAME_BYTES)
        if name in arrays:
            msg = f"arrays: expected different names, got {shown(name)} twice"
            raise ValueError(msg)
        arrays[name] = _array(name, descriptor[1], descriptor[2], frame, limits)
    return arrays


def _array(
    name: str, dtype: object, shape: object, frame: Frame, limits: WireLimits
) -> npt.NDArray[Any]:
    """A read-only view of `frame`; its declared size must be its size."""
    if not isinstance(dtype, str) or dtype not in _WIRE_DTYPES:
        msg = f"arrays.{name}: expected dtype {' or '.join(_WIRE_DTYPES)}, got {shown(dtype)}"
        raise ValueError(msg)
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMENSIONS:
        msg = f"arrays.{name}: expected a shape of 1..{MAX_DIMENSIONS} numbers, got {shown(shape)}"
        raise ValueError(msg)
    field = f"arrays.{name}: shape"
    declared = _WIRE_DTYPES[dtype].itemsize
    for n in shape:
        declared *= integer(field, n, 1, limits.max_array_bytes)
    _check_array_bytes(name, len(frame), limits)
    if declared != len(frame):
        msg = (
            f"arrays.{name}: expected a frame of {declared} bytes for {dtype} {shape}, "
            f"got {len(frame)}"
        )
        raise ValueError(msg)
    array = np.frombuffer(frame, dtype=_WIRE_DTYPES[dtype]).reshape(shape)
    array.flags.writeable = False
    return array


def _check_frame_count(count: int, limits: WireLimits) -> None:
    if count > limits.max_frames:
        msg = f"message: expected at most {limits.max_frames} frames, got more"
        raise ValueError(msg)


def _check_array_bytes(name: str, size: int, limits: WireLimits) -> None:
    if size > limits.max_array_bytes:
        msg = f"arrays.{name}: expected at most {limits.max_array_bytes} bytes, got {size}"
        raise ValueError(msg)
