"""Predicted durations: a line above what was calibrated, its pace, pauses, and short parts."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from policy_server.cost_model import _PACES, _PAUSES, CostModel, DurationQuantile

FIXED_S, ROW_S = 0.001, 0.0001
ROWS = (1, 2, 4, 8, 16)


def calibrated():
    return CostModel(ROWS, [FIXED_S + ROW_S * n for n in ROWS])


def predicted_s(cost, network_rows):
    return cost.per_call_s + cost.per_row_s * network_rows


def observe(cost, paces, rows=10, between_s=0.0):
    """Calls that take so many times what was calibrated; each is a stretch of its own."""
    for pace in paces:
        call_s = pace * (FIXED_S + ROW_S * rows)
        cost.observe_call(rows, call_s, call_s + between_s)


@given(st.floats(0, 0.01), st.floats(1e-6, 0.001))
def test_points_on_a_line_give_that_line(fixed_s, row_s):
    cost = CostModel(ROWS, [fixed_s + row_s * n for n in ROWS])
    assert cost.per_call_s == pytest.approx(fixed_s, abs=1e-9)
    assert cost.per_row_s == pytest.approx(row_s, rel=1e-6)
    assert cost.stall_s == 0


@given(st.lists(st.floats(1e-5, 0.1), min_size=1, max_size=10))
def test_no_calibrated_call_lies_above_the_line(seconds):
    rows = [2**i for i in range(len(seconds))]
    cost = CostModel(rows, seconds)
    assert cost.per_call_s >= 0
    assert cost.per_row_s >= 0
    for n, call_s in zip(rows, seconds, strict=True):
        assert predicted_s(cost, n) >= call_s - 1e-12


@given(st.floats(1e-5, 0.005), st.floats(1e-6, 0.002), st.floats(1e-4, 0.02), st.floats(0.02, 1))
def test_the_largest_call_worth_making_fits_and_no_larger_one_fits_and_pays(
    fixed_s, row_s, max_call_s, loss
):
    cost = CostModel(ROWS, [fixed_s + row_s * n for n in ROWS])
    rows = cost.efficient_rows(max_call_s, loss)
    assert rows >= 1
    assert rows == 1 or predicted_s(cost, rows) <= max_call_s * (1 + 1e-9)

    def row_costs(n):
        return fixed_s / n + row_s

    assume(abs(row_costs(rows + 1) / row_s - 1 - loss) > 1e-6)
    # one row more would be too slow, or rows are as cheap by then as they need to be
    assert (
        predicted_s(cost, rows + 1) > max_call_s * (1 - 1e-9)
        or row_costs(rows + 1) <= (1 + loss) * row_s
    )


def test_when_everything_is_slower_a_call_of_the_same_length_has_fewer_rows():
    cost = calibrated()
    assert cost.efficient_rows(0.00301, 0.1) == 20
    observe(cost, [2.0] * 20)
    assert cost.efficient_rows(0.00301, 0.1) == 5


def test_the_pace_is_a_high_quantile_of_sums_not_the_mean_and_not_the_maximum():
    rng = np.random.default_rng(0)
    cost, paces = calibrated(), rng.gamma(16, 1 / 16, 2000)
    observe(cost, paces)
    assert np.quantile(paces, 0.7) < cost.slowdown < np.quantile(paces, 0.97)
    # calls so short that many are one stretch: their jitter evens out
    short = CostModel([1, 2], [0.00001, 0.00001])
    for pace in rng.gamma(16, 1 / 16, 40_000):
        short.observe_call(1, pace * 0.00001, pace * 0.00001)
    assert 1.0 <= short.slowdown < 1.04


def test_one_outlier_changes_nothing():
    cost = calibrated()
    observe(cost, [1.0] * 100)
    for _ in range(200):
        observe(cost, [60.0])
        for _ in range(10):  # at no moment after it
            assert cost.slowdown == pytest.approx(1.0)
            assert cost.stall_s == pytest.approx(0.0)
            observe(cost, [1.0])
        observe(cost, [1.0] * 300)


@pytest.mark.parametrize("before", range(50, 58))
@pytest.mark.parametrize("pace", [1.5, 5.0, 20.0])
def test_a_slower_regime_is_followed_within_a_few_stretches(before, pace):
    cost = calibrated()
    observe(cost, [1.0] * before)
    observe(cost, [pace] * 3)
    assert cost.slowdown == pytest.approx(pace)
    assert predicted_s(cost, 7) == pytest.approx(pace * (FIXED_S + 7 * ROW_S))


@pytest.mark.parametrize("slow", [3, 20, 500])
def test_a_slow_spell_is_forgotten(slow):
    cost = calibrated()
    observe(cost, [1.0] * 50)
    observe(cost, [4.0] * slow)
    observe(cost, [1.0] * (_PACES + 8))  # the quantile is taken anew every few stretches
    assert cost.slowdown == pytest.approx(1.0)
    observe(cost, [1.0] * _PAUSES)
    assert cost.stall_s == pytest.approx(0.0)


def test_a_faster_regime_is_believed_in_time():
    cost = calibrated()
    observe(cost, [0.5] * 400)
    assert cost.slowdown == pytest.approx(0.5)


def test_what_lies_between_calls_is_part_of_the_price_of_a_call_not_of_a_row():
    cost = calibrated()
    observe(cost, [1.0] * 200, between_s=0.0004)
    assert cost.per_row_s == pytest.approx(ROW_S)
    assert cost.per_call_s == pytest.approx(FIXED_S + 0.0004)


@pytest.mark.parametrize(("every", "seen"), [(20, True), (400, False)])
def test_a_pause_that_comes_now_and_then_is_allowed_for(every, seen):
    cost, pause_s = calibrated(), 0.012
    for number in range(1200):
        between_s = pause_s if number % every == 7 else 0.0
        observe(cost, [1.0], between_s=between_s)
    assert cost.slowdown == pytest.approx(1.0)
    assert cost.per_call_s == pytest.approx(FIXED_S)
    if seen:
        assert cost.stall_s == pytest.approx(pause_s)
    else:
        assert cost.stall_s == pytest.approx(0.0)


def test_calls_that_cost_nothing_are_no_reason_to_fail():
    cost = CostModel(ROWS, [0.0] * len(ROWS))
    cost.observe_call(4, 0.0, 0.01)
    assert cost.per_call_s >= 0


# ── encoding and finishing ───────────────────────────────────────────────────────────────────────


def fed(*durations):
    quantile = DurationQuantile(0.002)
    for duration_s in durations:
        quantile.observe(duration_s)
    return quantile


def test_a_duration_is_a_high_quantile_not_the_mean():
    samples = np.random.default_rng(0).gamma(4, 0.00025, 2000)
    estimate_s = fed(*samples).estimate_s
    assert np.quantile(samples, 0.85) < estimate_s < np.quantile(samples, 0.995)


@pytest.mark.parametrize("after", range(9))
def test_one_long_duration_does_not_move_it(after):
    estimate_s = fed(*[0.001] * 120, 0.5, *[0.001] * after).estimate_s
    assert estimate_s == pytest.approx(0.001)


@pytest.mark.parametrize("before", range(193, 209))
def test_longer_durations_are_followed_within_sixteen(before):
    assert fed(*[0.001] * before, *[0.003] * 16).estimate_s == pytest.approx(0.003)


def test_long_durations_are_forgotten():
    assert fed(*[0.003] * 50, *[0.001] * 200).estimate_s == pytest.approx(0.001)


def test_before_any_measurement_it_is_what_one_was_told():
    assert fed().estimate_s == 0.002
    assert fed(0.001).estimate_s == pytest.approx(0.001)


def test_the_longest_pause_is_known_at_once_and_forgotten_in_the_end():
    cost = calibrated()
    observe(cost, [1.0], between_s=0.005)
    observe(cost, [1.0] * 2)
    assert cost.worst_stall_s == pytest.approx(0.005, rel=0.1)
    assert cost.stall_s == 0
    observe(cost, [1.0] * 3000)
    assert cost.worst_stall_s == pytest.approx(0.0)
