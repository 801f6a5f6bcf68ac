"""What a robot installs to be driven by a policy server: numpy, pyzmq and msgspec, nothing heavier.

Start with `PolicyClient` for single questions and `ControlLoop` to drive a `Robot`.
"""

from client.action_buffer import ActionBuffer
from client.action_limits import ActionLimits
from client.control_loop import ControlLoop
from client.errors import (
    CancelledError,
    CannotServeError,
    ConnectionLostError,
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    PolicyError,
    ProtocolError,
    ServerFaultError,
    SupersededError,
    UnsafeActionError,
)
from client.loop_stats import LoopStats, RequestRecord
from client.messages import Metadata, SamplingDefaults, Timing
from client.outstanding import Chunk
from client.policy_client import PolicyClient
from client.robot import Robot
from client.specs import ArraySpec, PolicySpec
from client.ticker import Tick, Ticker
from client.wire import PROTOCOL_VERSION, WireLimits

__all__ = [
    "PROTOCOL_VERSION",
    "ActionBuffer",
    "ActionLimits",
    "ArraySpec",
    "CancelledError",
    "CannotServeError",
    "Chunk",
    "ConnectionLostError",
    "ControlLoop",
    "DeadlineError",
    "InvalidRequestError",
    "LoopStats",
    "Metadata",
    "OverloadedError",
    "PolicyClient",
    "PolicyError",
    "PolicySpec",
    "ProtocolError",
    "RequestRecord",
    "Robot",
    "SamplingDefaults",
    "ServerFaultError",
    "SupersededError",
    "Tick",
    "Ticker",
    "Timing",
    "UnsafeActionError",
    "WireLimits",
]
