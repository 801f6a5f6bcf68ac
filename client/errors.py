"""Every error of the project, as one tree split by whose fault it is.

`code` is what travels on the wire (docs/protocol.md); a client rebuilds the same class from it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

UnsafeReason = Literal["shape", "finite", "limits", "change"]


class PolicyError(Exception):
    """Base of everything this project raises on purpose.

    Attributes:
        code: stable name of the error on the wire.
        request_id: the request it answers; None when it belongs to no single request.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, request_id: int | None = None) -> None:
        """Keep which request it is about beside the message."""
        super().__init__(message)
        self.request_id = request_id


class InvalidRequestError(PolicyError, ValueError):
    """The caller's fault: a field is missing, unknown, or not what the specification says."""

    code = "invalid_request"


class CannotServeError(PolicyError):
    """Nobody's fault: a correct request that there is no time or room for."""

    code = "cannot_serve"


class OverloadedError(CannotServeError):
    """A queue limit is reached; retrying later may help, retrying at once will not."""

    code = "overloaded"


class DeadlineError(CannotServeError):
    """Not even `min_steps` denoising steps would finish within the budget.

    Attributes:
        soonest_s: the smallest budget, in seconds, that the server predicts it could have met.
    """

    code = "deadline"

    def __init__(
        self, message: str, *, request_id: int | None = None, soonest_s: float | None = None
    ) -> None:
        """Keep what budget could have been met beside the message."""
        super().__init__(message, request_id=request_id)
        self.soonest_s = soonest_s


class SupersededError(CannotServeError):
    """A newer request of the same session arrived before this one had begun."""

    code = "superseded"


class CancelledError(CannotServeError):
    """The client no longer wants the answer and said so."""

    code = "cancelled"


class ServerFaultError(PolicyError):
    """The server's fault: the model failed or produced a non-finite action."""

    code = "server_fault"


class UnsafeActionError(ServerFaultError):
    """What the server answered must not be commanded; found by the robot's side.

    Attributes:
        reason: "shape" or "finite": no action at all; "limits" or "change": beyond what the robot
            declares.
    """

    def __init__(self, reason: UnsafeReason, message: str) -> None:
        """Keep the reason beside the message."""
        super().__init__(message)
        self.reason = reason


class ProtocolError(PolicyError):
    """The two sides do not speak the same protocol, or a message cannot be decoded at all."""

    code = "protocol"


class ConnectionLostError(PolicyError, TimeoutError):
    """No answer within `timeout_s`: the server is not there, is gone, or is unreachable."""

    code = "connection_lost"


_BY_CODE: dict[str, type[PolicyError]] = {
    cls.code: cls
    for cls in (
        InvalidRequestError,
        OverloadedError,
        DeadlineError,
        SupersededError,
        CancelledError,
        ServerFaultError,
        ProtocolError,
    )
}


def from_wire(
    code: str, message: str, *, request_id: int | None, soonest_s: float | None = None
) -> PolicyError:
    """Rebuild the error that a server reported; an unknown code becomes a `PolicyError`."""
    cls = _BY_CODE.get(code, PolicyError)
    if cls is DeadlineError:
        return DeadlineError(message, request_id=request_id, soonest_s=soonest_s)
    return cls(message, request_id=request_id)
