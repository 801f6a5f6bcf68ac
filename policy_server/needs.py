"""What those in flight need of the next call, in the terms of `allocation` (pure)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy_server.allocation import CallPrice, Demand, Ints, allocate_steps
from policy_server.cost_model import CostModel
from policy_server.in_flight import InFlight, Slots
from policy_server.planner import StepRange

_PATIENCE_CALLS, _LATE_EVERY = 32, 4
"""A late request may be passed over so often; then it goes first, in one of so many calls at most,
so that many of them do not stop all others."""
_LOSS = 0.1
"""A call is large enough when a row costs within 10% of what it would in an endless one."""
_QUEUE_SHARE = 0.25
"""See `allocate_steps`."""
_SCARCE = 0.5
"""Steps are cut when fewer of the slots are free: whoever finds none would get nothing."""
_CALM_S, _CALM_SHARE = 0.006, 0.4
_SURPRISE_S, _SURPRISE_SHARE = 0.010, 0.65
_SURPRISES = 2
"""Steps beyond the fewest leave so much of a budget free, at most such a share of it, even when no
pause has been seen for long: a neighbour may come at any moment. After it has come, up to the
second pair, room for so many pauses like the worst: it takes time slices of some milliseconds on
the way here, in the middle of a request, and on the way back, where only the robot sees it."""
_STALL_SHARE = 0.75
"""Of a budget, at most so much is left free for pauses that happen again and again."""


@dataclass(frozen=True)
class Needs:
    """Of all rows, at the present cost.

    Attributes:
        rows: in flight.
        cost: of calls.
        steps: of the checkpoint.
        max_call_s: see `EngineLimits`.
    """

    rows: InFlight
    cost: CostModel
    steps: StepRange
    max_call_s: float

    def price(self) -> CallPrice:
        """Of calls from now on."""
        cost, inside = self.cost, self.rows
        max_rows = max(2, cost.efficient_rows(self.max_call_s, _LOSS))
        if max_rows % 2 and (inside.network_rows[inside.used] == 2).any():
            max_rows -= 1  # half a guided request is none
        return CallPrice(cost.per_call_s, cost.per_row_s, max_rows)

    def demand(self, slots: Slots, now_s: float, price: CallPrice, calls: int) -> Demand:
        """What each needs.

        Args:
            slots: in order of their deadlines.
            now_s: engine clock.
            price: of the calls.
            calls: that have been made so far.
        """
        rows, cost, steps = self.rows, self.cost, self.steps
        network_rows, executed = rows.network_rows[slots], rows.executed[slots]
        fixed, begun = rows.fixed[slots], rows.begun[slots]
        fewest = np.where(fixed, rows.steps_left[slots], np.maximum(steps.min_steps - executed, 1))
        most = np.where(fixed, fewest, np.maximum(steps.max_useful_steps - executed, fewest))
        time_left_s = rows.deadline_s[slots] - now_s - cost.finish.estimate_s
        encode_s, pressing = np.zeros(len(slots)), np.zeros(len(slots), bool)
        if not begun.all():
            encode_s[~begun] = cost.encode.typical_s
            waited_s = now_s - rows.deadline_s[slots] + rows.budget_s[slots]
            pressing = ~begun & (waited_s + price.full_call_s > self.max_call_s)
        late = fewest * price.step_s(network_rows) + encode_s > time_left_s
        overdue = np.zeros(len(slots), bool)
        if late.any() and calls % _LATE_EVERY == 0:
            passed_over = np.where(late, calls - rows.last_call[slots], 0)
            longest = int(passed_over.argmax())
            overdue[longest] = passed_over[longest] >= _PATIENCE_CALLS
        return Demand(
            network_rows,
            executed,
            fewest,
            most,
            encode_s,
            time_left_s - encode_s,
            pressing,
            ~rows.promised[slots],
            late,
            overdue,
        )

    def given_steps(self, slots: Slots, demand: Demand, price: CallPrice) -> Ints:
        """Steps still to do of each, of which some are kept in reserve for what may come."""
        rows, steps = self.rows, self.steps
        if steps.max_useful_steps == steps.min_steps or rows.fixed[slots].all():
            return demand.fewest
        free = 1 - (len(slots) - 1) / rows.size
        budget_s = rows.budget_s[slots]
        surprise_s = min(max(_SURPRISES * self.cost.worst_stall_s, _CALM_S), _SURPRISE_S)
        alarm = (surprise_s - _CALM_S) / (_SURPRISE_S - _CALM_S)  # 0 when all is calm, to 1
        share = _CALM_SHARE + alarm * (_SURPRISE_SHARE - _CALM_SHARE)
        reserve_s = np.maximum(
            np.minimum(surprise_s, share * budget_s),
            np.minimum(self.cost.stall_s, _STALL_SHARE * budget_s),
        )
        return allocate_steps(demand, reserve_s, _QUEUE_SHARE * min(1.0, free / _SCARCE), price)
