"""Who gets how many steps, and who takes part in the next network call (pure arithmetic).

Arrays are over requests in order of their deadlines. A call of n network rows takes f + g·n seconds
and has at most R rows. `late` requests cannot be in time whatever is done, so they yield to all
others (earliest deadline first would let one late request make all after it late, too).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ROUNDING_S = 1e-9
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_MOST_LEVELS = 32
"""Beyond this the steps that are tried lie a few percent apart: all at once stay a small matrix."""


@dataclass(frozen=True)
class CallPrice:
    """A call's price now.

    Attributes:
        per_call_s: f.
        per_row_s: g.
        max_rows: R.
    """

    per_call_s: float
    per_row_s: float
    max_rows: int

    def step_s(self, network_rows: Ints) -> Floats:
        """Of a step in a call of its own, for requests with so many rows each."""
        return np.asarray(self.per_call_s + self.per_row_s * network_rows, np.float64)

    @property
    def full_call_s(self) -> float:
        """Of a call with as many rows as it may have."""
        return self.per_call_s + self.per_row_s * self.max_rows

    @property
    def row_s(self) -> float:
        """Of a row in a call that is full."""
        return self.full_call_s / self.max_rows


@dataclass(frozen=True)
class Demand:
    """What the requests in flight need, in order of their deadlines; every array is [requests].

    Attributes:
        network_rows: of one step.
        executed: steps done.
        fewest: steps that each must still have, at least 1.
        most: steps of use, at least `fewest`.
        encode_s: that taking part for the first time adds to a call; 0 later.
        time_left_s: until each must be done, less its own encoding.
        pressing: it has not taken part yet, and should now, so that nobody waits long to begin.
        yields: it was let in on condition that all others go first where not all can be in time.
        late: it cannot be in time whatever is done.
        overdue: it is late and has been passed over for too long.
    """

    network_rows: Ints
    executed: Ints
    fewest: Ints
    most: Ints
    encode_s: Floats
    time_left_s: Floats
    pressing: Bools
    yields: Bools
    late: Bools
    overdue: Bools


def allocate_steps(demand: Demand, reserve_s: Floats, queue_share: float, price: CallPrice) -> Ints:
    """Steps still to do of each request, such that all are in time if they can be.

    Everybody gets the same number of steps in all, its *level*, as far as that is possible: those
    that are due before some deadline must share the time until then, which bounds their level, and
    whoever is due later may have a higher one. Late ones get the fewest.

    Args:
        demand: of all in flight.
        reserve_s: [requests], to be kept free before each deadline, as far as steps beyond the
            fewest go.
        queue_share: of the time that a request has beyond its own work, so much may go to steps of
            others before it. With all of it a standing queue would grow until every answer came
            just before its deadline, with no more answers a second: from old observations, and
            with no room for the next stall.
        price: of the calls.
    """
    late, fewest, most = demand.late, demand.fewest, demand.most
    if len(late) == 1:  # the same in short
        fit = (demand.time_left_s[0] - reserve_s[0]) / price.step_s(demand.network_rows)[0]
        return np.array([max(fewest[0], int(min(fit + _ROUNDING_S, most[0])))])
    on_time = (~late).nonzero()[0]
    if not len(on_time):
        return fewest
    rows, done = demand.network_rows[on_time], demand.executed[on_time]
    low, high = fewest[on_time], most[on_time]
    elastic = low < high
    left_s = demand.time_left_s[on_time] - elastic * reserve_s[on_time]
    if not elastic.any() or _fits(rows, high, left_s, queue_share, price).all():
        return np.where(late, fewest, most)
    levels = _levels(int((done + low)[elastic].min()), int((done + high)[elastic].max()))
    steps = np.clip(levels[:, None] - done, low, high)
    fits = _fits(rows, steps, left_s, queue_share, price)
    counted = fits.cumprod(axis=0).sum(axis=0)
    # a fixed count, or one that yields, that fits at no level: the others do not give way
    hopeless = (counted == 0) & (~elastic | demand.yields[on_time])
    highest = np.where(hopeless, len(levels), np.maximum(counted, 1)) - 1
    # whoever is due earlier is part of all that is due later
    shared = np.minimum.accumulate(highest[::-1])[::-1]
    given = fewest.copy()
    given[on_time] = np.clip(levels[shared] - done, low, high)
    return given


def _levels(low: int, high: int) -> Ints:
    """Numbers of steps to consider: all, or where these are many, with equal ratios."""
    if high - low < _MOST_LEVELS:
        return np.arange(low, high + 1)
    return np.unique(np.geomspace(low, high, _MOST_LEVELS).round().astype(np.int64))


def _fits(
    rows: Ints, steps: Ints, time_left_s: Floats, queue_share: float, price: CallPrice
) -> Bools:
    """Whether each would be done in good time, along the last axis, if none due later took part."""
    total_rows = (rows * steps).cumsum(axis=-1)
    calls = np.maximum(np.maximum.accumulate(steps, axis=-1), total_rows / price.max_rows)
    done_s = price.per_call_s * calls + price.per_row_s * total_rows
    alone_s = steps * price.step_s(rows)
    to_spare_s = time_left_s - alone_s
    fits: Bools = (to_spare_s >= 0) & (done_s - alone_s <= queue_share * to_spare_s + _ROUNDING_S)
    return fits


def _done_s(demand: Demand, steps_left: Ints, late: Bools, price: CallPrice) -> Floats:
    """When each is done at the latest, earliest deadline first and `late` ones last."""
    row_steps = np.where(late, 0, demand.network_rows * steps_left)
    before_s = (row_steps.cumsum() - row_steps) * price.row_s
    return np.asarray(before_s + steps_left * price.step_s(demand.network_rows), np.float64)


def choose_rows(demand: Demand, steps_left: Ints, price: CallPrice) -> npt.NDArray[np.intp]:
    """Which requests take part in the next call: the more the better, as long as nobody suffers.

    Earliest deadline first while a bound (Graham 1966) says that nobody will be late, and whoever
    presses before all others if it says so even then; otherwise latest possible start first, which
    is best for equal calls (Brucker, Garey & Johnson 1977).
    A call is filled up in that order until it is full or, as long as all can be in time, would be
    too slow for somebody in it.
    Overdue requests go first, so that nobody is passed over for ever, other late ones last.

    Args:
        demand: of all in flight, at least one.
        steps_left: of each, at least 1.
        price: of the calls.

    Returns:
        Indices of at least one request, most urgent first.
    """
    network_rows, time_left_s, late = demand.network_rows, demand.time_left_s, demand.late
    if len(steps_left) == 1:
        return np.zeros(1, np.intp)
    all_rows = int(network_rows.sum())
    if all_rows <= price.max_rows:
        together_s = steps_left * (price.per_call_s + price.per_row_s * all_rows)
        if ((together_s + demand.encode_s.sum() <= time_left_s) | late).all():
            return np.arange(len(steps_left))
    alone_s = steps_left * price.step_s(network_rows)
    done_s = _done_s(demand, steps_left, late, price)
    if demand.yields.any() and (done_s > time_left_s)[~late].any():
        late = late | demand.yields
        done_s = _done_s(demand, steps_left, late, price)
    if (done_s <= time_left_s)[~late].all():
        first = demand.pressing & ~late
        first_s = np.where(first, price.step_s(network_rows) + demand.encode_s, 0.0)
        overtaken_s = first_s.sum() - first_s.cumsum()
        if (overtaken_s + done_s > time_left_s)[~late].any():
            first = np.zeros_like(late)
        order = np.lexsort((~first, late, ~demand.overdue))
        allowed_s = np.where(late, np.inf, time_left_s / steps_left)[order]
    else:
        # not everybody can be in time, so it counts how many are: no call is kept small for one
        start_s = np.where(late, time_left_s, time_left_s - alone_s)
        order = np.lexsort((start_s, late, ~demand.overdue))
        allowed_s = np.full(len(order), np.inf)
    rows = network_rows[order].cumsum()
    call_s = price.per_call_s + price.per_row_s * rows + demand.encode_s[order].cumsum()
    fits = (rows <= price.max_rows) & (call_s <= np.minimum.accumulate(allowed_s))
    return order[: max(1, int(fits.cumprod().sum()))]
