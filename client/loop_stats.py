"""What a control loop counts: requests by outcome, control ticks by what was executed."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from client.errors import UnsafeReason

KEPT_RECORDS = 100_000

Outcome = Literal["on_time", "late", "refused", "lost", "fault", "abandoned"]


@dataclass
class RequestRecord:
    """What became of one due request.

    Attributes:
        due_s: when it was due, by the client's clock.
        request_id: None if it was never sent.
        outcome: *on_time* or *late* by the client's clock; *refused* by the server or before
            sending; *lost*: no answer, or never asked since the loop itself was held up; *fault* of
            the server; *abandoned*: given up within its budget because a newer episode had begun.
        latency_s: from due_s to the arrival of the answer; None without an answer.
        num_steps: denoising steps of the answer.
        nfe: network rows of the answer.
        model_id: of the model that answered.
        staleness_s: age of the newest observation when the first of its actions was executed; None
            if none was.
        error: message of the error, if that was the answer.
    """

    due_s: float
    request_id: int | None = None
    outcome: Outcome | None = None
    latency_s: float | None = None
    num_steps: int | None = None
    nfe: int | None = None
    model_id: str | None = None
    staleness_s: float | None = None
    error: str | None = None


@dataclass
class LoopStats:
    """Counters of one control loop over all of its episodes.

    control_ticks is the sum of starved, waiting, and the ticks that executed an action.

    Attributes:
        control_ticks: ticks that ran.
        starved: ticks with no action due when one should have been.
        waiting: ticks at the start of an episode, within the budget of its first request.
        rejected: chunks that broke the robot's limits, by reason; "change" is found only when an
            action is due, so the outcome of such a request has been counted before.
        overruns: times that a tick started late or ticks were skipped.
        skipped: ticks that never ran.
        discarded: chunks whose observation was not newer than what was being executed.
        unmatched: results that belong to no request of the loop.
        outcomes: requests by outcome.
        requests: the newest `KEPT_RECORDS` requests that have an outcome, oldest first.
    """

    control_ticks: int = 0
    starved: int = 0
    waiting: int = 0
    rejected: Counter[UnsafeReason] = field(default_factory=Counter)
    overruns: int = 0
    skipped: int = 0
    discarded: int = 0
    unmatched: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    requests: deque[RequestRecord] = field(default_factory=lambda: deque(maxlen=KEPT_RECORDS))

    def settle(self, record: RequestRecord, outcome: Outcome) -> None:
        """Count a request; it must not have an outcome yet."""
        record.outcome = outcome
        self.outcomes[outcome] += 1
        self.requests.append(record)

    @property
    def late(self) -> int:
        """Requests answered after their budget."""
        return self.outcomes["late"]

    @property
    def refused(self) -> int:
        """Requests that got a reason instead of an answer."""
        return self.outcomes["refused"]

    @property
    def lost(self) -> int:
        """Requests without an answer, server faults included."""
        return self.outcomes["lost"] + self.outcomes["fault"]

    @property
    def due_requests(self) -> int:
        """Requests that should have been answered in time."""
        return self.outcomes["on_time"] + self.late + self.refused + self.lost

    @property
    def miss_rate(self) -> float:
        """(late + refused + lost) / due_requests; 0 if none was due."""
        return (self.late + self.refused + self.lost) / max(1, self.due_requests)
