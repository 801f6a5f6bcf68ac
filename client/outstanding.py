"""Which requests await an answer, and what becomes of each (pure: it is told the time)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from client.errors import CancelledError, ConnectionLostError, PolicyError, ProtocolError
from client.messages import ActionChunk, ErrorReply, Message, MetadataReply, Pong


@dataclass(frozen=True, eq=False)
class Chunk(ActionChunk):
    """An `ActionChunk` and what the client's own clock says about it.

    `deadline_met` is the server's verdict; `late` is the one that counts.

    Attributes:
        due_s: instant on the client's clock from which the budget counted.
        latency_s: from due_s to the arrival.
        round_trip_s: from the sending to the arrival.
        late: latency_s is more than the budget.
    """

    due_s: float
    latency_s: float
    round_trip_s: float
    late: bool

    @classmethod
    def of(cls, reply: ActionChunk, sent: Sent, now_s: float) -> Chunk:
        """What a reply that came at `now_s` is to whoever sent this."""
        chunk = object.__new__(cls)  # what a reply holds has been checked when it was made
        latency_s = now_s - sent.due_s
        vars(chunk).update(
            vars(reply),
            due_s=sent.due_s,
            latency_s=latency_s,
            round_trip_s=now_s - sent.sent_s,
            late=latency_s > sent.budget_s,
        )
        return chunk


Result = Chunk | MetadataReply | Pong | PolicyError


class Sent(NamedTuple):
    """A request that awaits its answer; instants on the client's clock.

    Attributes:
        expects: type of the reply.
        sent_s: when it was sent.
        due_s: from when its budget counts.
        budget_s: as the caller gave it.
        timeout_s: how long the caller wants to wait, from sent_s.
    """

    expects: type[ActionChunk | MetadataReply | Pong]
    sent_s: float
    due_s: float
    budget_s: float
    timeout_s: float


class Outstanding:
    """Settles every request exactly once: by its reply, its error, its timeout or its cancelling.

    Attributes:
        dropped: replies to a request that is unknown or already settled.
        next_expiry_s: `expire` has nothing to do before this instant.
    """

    def __init__(self) -> None:
        """Start with no request."""
        self.dropped = 0
        self.next_expiry_s = math.inf
        self._sent: dict[int, Sent] = {}

    def add(self, request_id: int, sent: Sent) -> None:
        """A request has been sent."""
        self._sent[request_id] = sent
        self.next_expiry_s = min(self.next_expiry_s, sent.sent_s + sent.timeout_s)

    def settle(self, reply: Message | PolicyError, now_s: float) -> Result | None:
        """What a message that came at `now_s` means to the caller; None if it is dropped.

        Args:
            reply: what was decoded, or the error of decoding it.
            now_s: client's clock.
        """
        request_id = reply.request_id
        if request_id is None:  # nobody's in particular, hence everybody's business
            return (
                reply.to_error()
                if isinstance(reply, ErrorReply)
                else _not_a_reply(reply, "a reply")
            )
        sent = self._sent.pop(request_id, None)
        if sent is None:
            self.dropped += 1
            return None
        if isinstance(reply, ErrorReply):
            return reply.to_error()
        if not isinstance(reply, sent.expects):
            return _not_a_reply(reply, sent.expects.__name__)
        if isinstance(reply, ActionChunk):
            return Chunk.of(reply, sent, now_s)
        return reply

    def expire(self, now_s: float) -> list[tuple[Sent, ConnectionLostError]]:
        """Settle the requests whose timeout has passed; each as it was sent and its error."""
        if now_s < self.next_expiry_s:
            return []
        expired = [i for i, s in self._sent.items() if now_s >= s.sent_s + s.timeout_s]
        lost = [self._lost(request_id) for request_id in expired]
        expiries_s = (s.sent_s + s.timeout_s for s in self._sent.values())
        self.next_expiry_s = min(expiries_s, default=math.inf)
        return lost

    def cancel(self, request_id: int) -> CancelledError | None:
        """Settle a request for an action chunk that is no longer wanted; None if it is none."""
        sent = self._sent.get(request_id)
        if sent is None or sent.expects is not ActionChunk:
            return None
        self.forget(request_id)
        return CancelledError(f"request {request_id}: cancelled", request_id=request_id)

    def forget(self, request_id: int) -> None:
        """Nobody waits for this request any more."""
        self._sent.pop(request_id, None)

    def is_only(self, request_id: int) -> bool:
        """Whether this request is outstanding and no other is."""
        return self._sent.keys() == {request_id}

    def _lost(self, request_id: int) -> tuple[Sent, ConnectionLostError]:
        sent = self._sent.pop(request_id)
        msg = (
            f"request {request_id}: expected an answer within timeout_s={sent.timeout_s:g}, got "
            "none; is the server running, and reachable at this address?"
        )
        return sent, ConnectionLostError(msg, request_id=request_id)


def _not_a_reply(reply: Message | PolicyError, expected: str) -> ProtocolError:
    if isinstance(reply, ProtocolError):
        return reply
    got = str(reply) if isinstance(reply, PolicyError) else type(reply).__name__
    msg = f"reply: expected {expected}, got {got}; is this a policy server?"
    return ProtocolError(msg, request_id=reply.request_id)
