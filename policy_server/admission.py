"""Whether a newcomer is admitted, and who gives way to it (pure; microseconds a question)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from client.errors import CannotServeError, DeadlineError, OverloadedError
from policy_server.allocation import CallPrice, Demand
from policy_server.backlog import Backlog
from policy_server.cost_model import CostModel
from policy_server.planner import StepRange
from policy_server.requests import EngineRequest, Refusal, RequestKey
from policy_server.shares import Shares

_CHANGE_OF_MIND_S = 0.005
"""For so long after its arrival a request may give way to one of a session that was served less."""
_MIN_STEPS_SHARE = 0.9
"""Of the time that a request has beyond its own work, so much may be promised to others before."""
_FIXED_SHARE = 0.5
"""The same for a fixed step count: its work is a wish, and a shorter queue serves as many."""
_BETTER_SERVED = 0.1
"""By how much a session's share must be larger for its request to give way."""


class Decision(NamedTuple):
    """About a newcomer.

    Attributes:
        error: why it is refused; None if it is admitted.
        displaced: a request that gives way to it, if one does.
        promised: time is kept free for it. Otherwise, if it is admitted, then on condition that all
            to whom time was promised go first.
    """

    error: CannotServeError | None
    displaced: Refusal | None
    promised: bool


class Admission:
    """Decides by what is promised already; the engine tells it what becomes of all that.

    Args:
        steps: of the checkpoint.
        cost: calibrated.
        clock: the engine's.
        max_in_flight: requests inside at one time.
    """

    def __init__(
        self, steps: StepRange, cost: CostModel, clock: Callable[[], float], max_in_flight: int
    ) -> None:
        self._steps = steps
        self._cost = cost
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._waiting: dict[str, EngineRequest] = {}
        self._shares = Shares()
        self._unpromised = 0
        self._rows_promised = 0
        self._price = CallPrice(cost.per_call_s, cost.per_row_s, 2)
        self._begins_s = 0.0
        self._made = Backlog(0.0)
        self._inside: tuple[npt.NDArray[np.float64], Demand] | None = None

    # ── what has become of requests ──────────────────────────────────────────────────────────────

    def waiting_of(self, session_id: str) -> EngineRequest | None:
        """The request of a session that is inside and has not begun."""
        return self._waiting.get(session_id)

    def entered(self, request: EngineRequest) -> None:
        """It was admitted and is inside."""
        self._waiting.pop(request.key[0], None)  # so that the dict is in order of admission
        self._waiting[request.key[0]] = request

    def begun(self, key: RequestKey) -> None:
        """It is taken into service."""
        waiting = self._waiting.get(key[0])
        if waiting is not None and waiting.key == key:
            del self._waiting[key[0]]

    def gone(self, request: EngineRequest, *, promised: bool) -> None:
        """It is no longer inside."""
        self.begun(request.key)
        if promised:
            self._rows_promised -= request.network_rows
        else:
            self._unpromised -= 1

    def answered(self, session_id: str) -> None:
        """A request of this session was answered."""
        self._shares.note(session_id, self._clock(), answered=True)

    def refused(self, session_id: str) -> None:
        """A request of this session got nothing."""
        self._shares.note(session_id, self._clock(), answered=False)

    def rebuild(
        self, now_s: float, deadline_s: npt.NDArray[np.float64], demand: Demand, price: CallPrice
    ) -> None:
        """Start anew from what is inside.

        Args:
            now_s: engine clock.
            deadline_s: [requests], rising.
            demand: of the same requests; nothing is kept free for those that are late or yield.
            price: of calls from now on.
        """
        self._price = price
        self._begins_s = now_s
        self._inside = deadline_s, demand

    @property
    def _backlog(self) -> Backlog:
        """What is promised; made when the first newcomer after a call asks."""
        if self._inside is not None:
            deadline_s, demand = self._inside
            promised = ~(demand.late | demand.yields)
            work_s = (demand.network_rows * demand.fewest)[promised] * self._price.row_s
            deadlines_s = deadline_s[promised].tolist()
            self._made = Backlog(self._begins_s, deadlines_s, work_s.tolist())
            self._inside = None
        return self._made

    def delayed(self, pause_s: float) -> None:
        """All promises will be kept so much later than planned."""
        self._begins_s += pause_s
        if self._inside is None:
            self._made.delay(pause_s)

    # ── newcomers ────────────────────────────────────────────────────────────────────────────────

    def admit(self, request: EngineRequest, older: EngineRequest | None, inside: int) -> Decision:
        """Decide on a newcomer.

        Args:
            request: the newcomer.
            older: request of its session that has not begun and leaves if this one is admitted.
            inside: requests in flight.
        """
        now_s = self._clock()
        if not inside:
            self._inside, self._made = None, Backlog(now_s)
        taken_back = older is not None and self._take_back(older)
        others, unpromised = inside, self._unpromised
        if older is not None:
            others, unpromised = others - 1, unpromised - (not taken_back)
        error, promised = self._judge(request, others, unpromised, now_s)
        displaced = None
        if error is not None and (victim := self._better_served(request, now_s)) is not None:
            freed = self._take_back(victim)
            fewer = unpromised - (not freed)
            error_then, promised = self._judge(request, others - 1, fewer, now_s)
            if error_then is None:
                error = None
                displaced = Refusal(victim, _gives_way())
                self._shares.note(victim.key[0], now_s, answered=False)
            elif freed:
                self._promise(victim)
        if error is None:
            if promised:
                self._promise(request)
                self._rows_promised += request.network_rows
            else:
                self._unpromised += 1
        else:
            # else it is refused for what it asks, not for us
            if self._calm_spare_s(request, now_s) >= 0:
                self._shares.note(request.key[0], now_s, answered=False)
            if older is not None and taken_back:
                self._promise(older)
        return Decision(error, displaced, promised)

    def deadline_error(self, request: EngineRequest, finish_s: float) -> DeadlineError:
        """That it could not be done before `finish_s`."""
        soonest_s = finish_s - request.arrived_s
        budget_s = request.deadline_s - request.arrived_s
        return DeadlineError(
            f"cannot meet deadline: {self._fewest(request)} steps would be done "
            f"{soonest_s * 1e3:.1f} ms after arrival, the budget is {budget_s * 1e3:.1f} ms; "
            "allow more or set best_effort",
            soonest_s=soonest_s,
        )

    def _judge(
        self, request: EngineRequest, others: int, unpromised: int, now_s: float
    ) -> tuple[CannotServeError | None, bool]:
        """Why it is refused, or None; and whether time can be promised to it."""
        if others >= self._max_in_flight:
            return OverloadedError(
                f"queue: {others} requests are inside already; send fewer"
            ), False
        room = self._shares.room(request.key[0], now_s)
        if others - unpromised >= room * self._max_in_flight:
            return OverloadedError(
                f"queue: {others} requests are inside already, and other robots were served less"
            ), False
        spare_s = request.deadline_s - now_s - self._service_s(request)  # if it began at once
        if not others and spare_s < 0:
            # only those that are served tell what calls take now, so a machine that was slow for a
            # while must not stay so in the estimates: whoever finds nobody else here may try
            spare_s = self._calm_spare_s(request, now_s)
        if spare_s >= 0 or not request.patient:
            error = self._lateness(request, spare_s, room, now_s)
            if error is None or not request.best_effort:
                return error, error is None
        # it will be late, or may be: it yields to all others, but not its slot
        if unpromised >= max(1, self._max_in_flight // 2):
            return OverloadedError(f"queue: {unpromised} late ones are inside already"), False
        return None, False

    def _lateness(
        self, request: EngineRequest, spare_s: float, room: float, now_s: float
    ) -> CannotServeError | None:
        """Why this request, or one that is inside already, would be late."""
        ahead_s = max(0.0, self._backlog.begin_s(request.deadline_s) - now_s)
        share = _MIN_STEPS_SHARE if request.num_steps is None else _FIXED_SHARE
        share *= room
        if ahead_s > share * spare_s:
            if request.num_steps is None:
                soonest_s = self._soonest_s(request, ahead_s, share, now_s)
                return self.deadline_error(request, soonest_s)
            return OverloadedError(
                f"queue: {ahead_s * 1e3:.1f} ms of work are promised to others; send fewer or "
                "slower, or leave num_steps to the server"
            )
        if self._backlog.leaves_all_in_time(request.deadline_s, self._work_s(request)):
            return None
        return OverloadedError("queue: others would be late that are due later; send fewer")

    def _soonest_s(
        self, request: EngineRequest, ahead_s: float, share: float, now_s: float
    ) -> float:
        """A deadline that it could have; the later, the more is due before it."""
        while True:
            due_s = now_s + ahead_s / share + self._service_s(request)
            before_s = max(0.0, self._backlog.begin_s(due_s) - now_s)
            if before_s <= ahead_s:
                return due_s
            ahead_s = before_s

    def _better_served(self, request: EngineRequest, now_s: float) -> EngineRequest | None:
        """Of the requests that have just been admitted, the one of the best served session."""
        if request.best_effort:
            return None
        since_s = now_s - _CHANGE_OF_MIND_S
        least = self._shares.of(request.key[0]) + _BETTER_SERVED
        best = None
        for other in reversed(self._waiting.values()):
            if other.arrived_s < since_s:
                break
            share = self._shares.of(other.key[0])
            if share > least and not other.best_effort and other.key[0] != request.key[0]:
                best, least = other, share
        return best

    # ── work ─────────────────────────────────────────────────────────────────────────────────────

    def _fewest(self, request: EngineRequest) -> int:
        return request.num_steps or self._steps.min_steps

    def _service_s(self, request: EngineRequest) -> float:
        """From its beginning to its reply, in calls that it shares with those inside."""
        cost, price = self._cost, self._price
        others = min(self._rows_promised, price.max_rows - 2)  # one guided request needs no company
        call_s = price.per_call_s + price.per_row_s * (request.network_rows + others)
        return cost.encode.estimate_s + self._fewest(request) * call_s + cost.finish.estimate_s

    def _work_s(self, request: EngineRequest) -> float:
        """Its share of full calls."""
        return self._fewest(request) * request.network_rows * self._price.row_s

    def _calm_spare_s(self, request: EngineRequest, now_s: float) -> float:
        """Of its time, what would be left if it began at once, in calm calls of its own."""
        calm_s = self._cost.calm_s(self._fewest(request), request.network_rows)
        return request.deadline_s - now_s - calm_s

    def _promise(self, request: EngineRequest) -> None:
        self._backlog.add(request.deadline_s, self._work_s(request))

    def _take_back(self, request: EngineRequest) -> bool:
        return self._backlog.remove(request.deadline_s, self._work_s(request))


def _gives_way() -> OverloadedError:
    return OverloadedError(
        "queue: gave way to a robot that has been served less of late; send fewer or slower"
    )
