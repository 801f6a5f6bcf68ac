"""Who gets how many steps, and who is in the next call: against exhaustive search."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_server.allocation import CallPrice, Demand, allocate_steps, choose_rows

PRICES = st.builds(
    CallPrice,
    st.sampled_from([0.0, 0.001, 0.004]),
    st.sampled_from([0.0001, 0.001]),
    st.integers(2, 9),
)


def demand(
    network_rows,
    fewest,
    most,
    time_left_s,
    executed=None,
    late=None,
    overdue=None,
    encode_s=None,
    pressing=None,
    yields=None,
):
    count = len(network_rows)
    return Demand(
        np.array(network_rows, np.int64),
        np.array(executed if executed is not None else [0] * count, np.int64),
        np.array(fewest, np.int64),
        np.array(most, np.int64),
        np.array(encode_s if encode_s is not None else [0.0] * count, np.float64),
        np.array(time_left_s, np.float64),
        np.array(pressing if pressing is not None else [False] * count, bool),
        np.array(yields if yields is not None else [False] * count, bool),
        np.array(late if late is not None else [False] * count, bool),
        np.array(overdue if overdue is not None else [False] * count, bool),
    )


@st.composite
def demands_and_prices(draw, max_requests=4, max_most=6):
    """Some are in time, some late."""
    price = draw(PRICES)
    count = draw(st.integers(1, max_requests))

    def each(strategy):
        return [draw(strategy) for _ in range(count)]

    fewest, network_rows = each(st.integers(1, 3)), each(st.integers(1, 2))
    time_left_s = sorted(each(st.one_of(st.floats(-0.01, 0.01), st.floats(0.01, 0.06))))
    needed_s = np.array(fewest) * price.step_s(np.array(network_rows))
    asked = demand(
        network_rows=network_rows,
        executed=each(st.integers(0, 3)),
        fewest=fewest,
        most=[low + draw(st.integers(0, max_most - 3)) for low in fewest],
        time_left_s=time_left_s,
        late=needed_s > np.array(time_left_s),
    )
    return asked, price


def all_in_time(asked, steps, spare_s, price):
    """Whether every prefix in order of deadlines can be done until its last one's deadline.

    A prefix takes at least as many calls as its longest request has steps, and as full calls take
    for all of it (McNaughton 1959: that is enough where calls may be of any size).
    """
    rows = longest = 0
    for i in range(len(steps)):
        if asked.late[i]:
            continue
        rows += int(asked.network_rows[i] * steps[i])
        longest = max(longest, int(steps[i]))
        done_s = price.per_call_s * max(longest, rows / price.max_rows) + price.per_row_s * rows
        kept_free_s = spare_s if asked.fewest[i] < asked.most[i] else 0.0
        if done_s > asked.time_left_s[i] - kept_free_s + 1e-12:
            return False
    return True


def lowest_level(asked, steps):
    """Steps in all of the worst off among those in time who have not all that are of use."""
    levels = asked.executed + steps
    return min(levels[~asked.late & (steps < asked.most)], default=np.inf)


@settings(max_examples=300)
@given(demands_and_prices(), st.sampled_from([0.0, 0.003]))
def test_nobody_could_have_more_without_the_worst_off_having_less(asked_and_price, spare_s):
    asked, price = asked_and_price
    steps = allocate_steps(asked, np.full(len(asked.late), spare_s), 1.0, price)
    assert (steps >= asked.fewest).all()
    assert (steps <= asked.most).all()
    assert (steps[asked.late] == asked.fewest[asked.late]).all()
    allocations = [
        np.array(allocation)
        for allocation in itertools.product(
            *(
                range(low, low + 1 if late else high + 1)
                for low, high, late in zip(asked.fewest, asked.most, asked.late, strict=True)
            )
        )
    ]
    possible = [a for a in allocations if all_in_time(asked, a, spare_s, price)]
    if not possible:
        return
    assert all_in_time(asked, steps, spare_s - 1e-9, price)
    assert lowest_level(asked, steps) == max(lowest_level(asked, a) for a in possible)


@settings(max_examples=200)
@given(
    st.integers(1, 20),
    st.integers(1, 2),
    st.floats(0.0, 0.3),
    PRICES,
)
def test_equal_requests_get_equal_steps_as_many_as_fit(count, rows, time_s, price):
    asked = demand([rows] * count, [2] * count, [10] * count, [time_s] * count)
    steps = allocate_steps(asked, np.zeros(len(asked.late)), 1.0, price)
    assert len(set(steps.tolist())) == 1
    step_s = price.per_call_s * max(1, count * rows / price.max_rows)
    step_s += price.per_row_s * rows * count
    # one step less or more where it fits exactly: floats
    assert steps[0] in {
        int(np.clip(np.floor(time_s / step_s + error), 2, 10)) for error in (-1e-9, 1e-9)
    }


def test_who_is_due_later_has_more_when_only_the_first_is_in_a_hurry():
    price = CallPrice(0.0, 0.001, 1)
    asked = demand([1, 1], [1, 1], [10, 10], [0.003, 0.1])
    assert allocate_steps(asked, np.zeros(len(asked.late)), 1.0, price).tolist() == [3, 10]


def test_a_share_of_the_queue_leaves_the_rest_of_the_time_unused():
    """Ten requests one after another, due together: what waits may be a share of what is left."""
    price, left_s = CallPrice(0.0, 0.001, 1), 0.1
    asked = demand([1] * 10, [1] * 10, [50] * 10, [left_s] * 10)
    for share in (0.25, 0.5, 1.0):
        steps = int(allocate_steps(asked, np.zeros(10), share, price)[0])
        waits = [9 * n * 0.001 <= share * (left_s - n * 0.001) for n in (steps, steps + 1)]
        assert waits == [True, False]


def test_a_long_fixed_request_in_the_company_does_not_make_the_shares_coarser():
    price = CallPrice(0.0, 0.001, 1)
    for level in range(2, 20):
        left_s = 2 * level * 0.001 + 1e-6
        asked = demand([1, 1, 1], [2, 2, 1000], [20, 20, 1000], [left_s, left_s, 10.0])
        assert allocate_steps(asked, np.zeros(len(asked.late)), 1.0, price)[:2].tolist() == [
            level,
            level,
        ]


@given(demands_and_prices(max_requests=6), st.data())
def test_a_call_has_the_most_urgent_each_once_and_is_not_too_large(asked_and_price, data):
    asked, price = asked_and_price
    overdue = (
        asked.late
        & np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6)))[: len(asked.late)]
    )
    asked = Demand(**{**vars(asked), "overdue": overdue})
    chosen = choose_rows(asked, asked.fewest, price).tolist()
    assert 1 <= len(chosen) == len(set(chosen))
    assert len(chosen) == 1 or asked.network_rows[chosen].sum() <= price.max_rows
    # the overdue, then those in time, then those who are late
    rank = np.where(asked.overdue, 0, np.where(asked.late, 2, 1))
    assert all(rank[i] >= max(rank[chosen]) for i in range(len(rank)) if i not in chosen)


@given(st.integers(1, 5), st.integers(1, 5), st.floats(1.001, 3.0))
def test_who_has_time_for_large_calls_shares_them_and_who_has_not_does_not(steps, others, slack):
    """One in a hurry, the others at ease: rows join only as long as its remaining calls allow."""
    price = CallPrice(0.001, 0.001, 6)
    alone_s = 0.002
    asked = demand(
        [1] * (1 + others),
        [steps] * (1 + others),
        [steps] * (1 + others),
        [steps * alone_s * slack] + [10.0] * others,
    )
    chosen = choose_rows(asked, asked.fewest, price)
    assert chosen[0] == 0
    fits = {int(alone_s * slack / 0.001 - 1 + error) for error in (-1e-9, 1e-9)}
    assert len(chosen) in {min(rows, 1 + others, 6) for rows in fits}


# ── against exhaustive search ────────────────────────────────────────────────────────────────────


def someone_can_save_all(steps, rows, deadlines_s, price):
    """Whether any sequence of calls has everybody in time; all are there from the start."""
    everyone = range(len(steps))

    @cache
    def possible(left, now_s):
        if not any(left):
            return True
        active = [i for i in everyone if left[i]]
        if any(now_s + left[i] * call_s([i], rows, price) > deadlines_s[i] + 1e-9 for i in active):
            return False
        for count in range(len(active), 0, -1):
            for chosen in itertools.combinations(active, count):
                if count > 1 and sum(rows[i] for i in chosen) > price.max_rows:
                    continue
                after = tuple(n - (i in chosen) for i, n in enumerate(left))
                if possible(after, round(now_s + call_s(chosen, rows, price), 9)):
                    return True
        return False

    return possible(tuple(steps), 0.0)


def call_s(chosen, rows, price):
    return price.per_call_s + price.per_row_s * sum(rows[i] for i in chosen)


def one_after_another_saves_all(steps, rows, deadlines_s, price):
    ends_s = itertools.accumulate(n * call_s([i], rows, price) for i, n in enumerate(steps))
    return all(end_s <= due_s + 1e-9 for end_s, due_s in zip(ends_s, deadlines_s, strict=True))


def chosen_calls_save_all(steps, rows, deadlines_s, price):
    """What `choose_rows` makes of it, call after call."""
    left, now_s = list(steps), 0.0
    while any(left):
        active = [i for i, n in enumerate(left) if n]
        fewest = [left[i] for i in active]
        time_left_s = [deadlines_s[i] + 1e-9 - now_s for i in active]
        late = [
            n * call_s([i], rows, price) > time_s
            for i, n, time_s in zip(active, fewest, time_left_s, strict=True)
        ]
        if any(late):
            return False
        asked = demand([rows[i] for i in active], fewest, fewest, time_left_s)
        chosen = [active[k] for k in choose_rows(asked, asked.fewest, price)]
        now_s += call_s(chosen, rows, price)
        for i in chosen:
            left[i] -= 1
            if not left[i] and now_s > deadlines_s[i] + 1e-8:
                return False
    return True


def cases(max_requests):
    """(steps, network rows, slack) of each."""
    return st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 2), st.floats(0, 4)),
        min_size=2,
        max_size=max_requests,
    )


@pytest.mark.parametrize("max_rows", [1, 2, 3])
@settings(max_examples=250)
@given(cases(4))
def test_with_equal_calls_all_are_in_time_whenever_any_order_has_them_so(max_rows, case):
    price = CallPrice(1.0, 0.0, max_rows)
    requests = sorted((n + slack * 2 / max_rows, n) for n, _, slack in case)
    steps, deadlines_s = [n for _, n in requests], [due_s for due_s, _ in requests]
    rows = [1] * len(steps)
    if someone_can_save_all(steps, rows, deadlines_s, price):
        assert chosen_calls_save_all(steps, rows, deadlines_s, price)


@settings(max_examples=400)
@given(
    cases(5),
    st.sampled_from([(1.0, 0.2), (0.5, 0.5), (0.2, 0.8), (1.0, 0.05), (0.0, 1.0)]),
    st.integers(2, 8),
)
def test_sharing_calls_makes_nobody_late_whom_one_after_another_would_have_saved(
    case, price, max_rows
):
    price = CallPrice(*price, max_rows)
    steps, rows = [n for n, _, _ in case], [r for _, r, _ in case]
    ends_s = itertools.accumulate(n * call_s([i], rows, price) for i, n in enumerate(steps))
    # most of the slack on top of one after another is none: the tight cases are the hard ones
    deadlines_s = [
        end_s + max(0.0, slack - 2) for end_s, (_, _, slack) in zip(ends_s, case, strict=True)
    ]
    deadlines_s = list(itertools.accumulate(deadlines_s, max))
    assert one_after_another_saves_all(steps, rows, deadlines_s, price)
    assert chosen_calls_save_all(steps, rows, deadlines_s, price)


def test_calls_that_pay_in_company_are_found_in_most_cases_where_any_order_saves_all():
    """The greedy choice is not the best here, but must not fall far behind exhaustive search."""
    rng = np.random.default_rng(0)
    possible = saved = 0
    while possible < 300:
        count = rng.integers(2, 5)
        steps, rows = rng.integers(1, 4, count).tolist(), rng.integers(1, 3, count).tolist()
        per_call_s, per_row_s = [(1.0, 0.2), (0.5, 0.5), (1.0, 0.05)][rng.integers(3)]
        price = CallPrice(per_call_s, per_row_s, int(rng.integers(2, 9)))
        slack = rng.uniform(0, rng.uniform(0.5, 2) * count, count)
        requests = sorted(
            (n * call_s([0], [r], price) + s, n, r)
            for n, r, s in zip(steps, rows, slack, strict=True)
        )
        deadlines_s, steps, rows = zip(*requests, strict=True)
        if someone_can_save_all(steps, rows, deadlines_s, price):
            possible += 1
            saved += chosen_calls_save_all(steps, rows, deadlines_s, price)
    assert saved / possible >= 0.7
