"""Plans: where the steps lie, and with which coefficients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.grids import LOGSNR_RANGE, make_timesteps
from models.samplers import ddim_coefficients, sampler_coefficients
from policy_server.planner import StepRange
from tests.policy_server.simulation import ALPHA_BAR, World

WORLD = World(min_steps=3, max_useful_steps=20)
SERVED = {grid: World(grid=grid).planner for grid in ("trailing", "linspace", "logsnr")}
MULTISTEP = World(grid="logsnr", sampler="dpmpp_2m").planner
LAMBDA = 0.5 * np.log(ALPHA_BAR / (1 - ALPHA_BAR))


@pytest.mark.parametrize("wrong", [(0, 5, 10), (3, 2, 10), (3, 11, 10), (1, 1, 0)])
def test_a_range_of_steps_is_in_order(wrong):
    with pytest.raises(ValueError, match="expected 1 <= min_steps <= max_useful_steps <= T"):
        StepRange(*wrong)


def test_a_plan_is_made_once_and_told_apart_by_all_that_it_depends_on():
    planner = World().planner
    plan = planner.plan(7, 800, 0.5)
    assert planner.plan(7, 800, 0.5) is plan
    for other in (planner.plan(6, 800, 0.5), planner.plan(7, 799, 0.5), planner.plan(7, 800, 0.4)):
        assert other.timesteps.tolist() != plan.timesteps.tolist() or not np.array_equal(
            other.coefficients, plan.coefficients
        )
    # DDIM does not look back, so what came before makes no difference; 2M does
    assert planner.plan(7, 800, 0.5, before=900) is plan
    looked_back = [MULTISTEP.plan(7, 800, 0.0, before).coefficients[0, 2] for before in (810, 990)]
    assert looked_back[0] != looked_back[1]


@given(st.integers(0, 999), st.integers(1, 1200), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_plan_starts_where_the_sample_is_and_ends_in_clean_data(start, num_steps, eta):
    plan = WORLD.planner.plan(num_steps, start, eta)
    assert len(plan.timesteps) == len(plan.coefficients) == min(num_steps, start + 1)
    assert plan.timesteps[0] == start
    assert np.all(np.diff(plan.timesteps) < 0)
    a, b, c, d = plan.coefficients[-1]
    assert (a, b, c, d) == pytest.approx((0, 1, 0, 0), abs=1e-12)


def test_coefficients_belong_to_their_pair_of_timesteps():
    """A point on the exact trajectory of one (x0, eps) pair is carried to the next one."""
    plan = WORLD.planner.plan(7, 800, 0.0)
    x0, eps = 0.3, -1.1
    after = [*(ALPHA_BAR[t] for t in plan.timesteps[1:]), 1.0]
    for t, (a, b, _, _), ab_next in zip(plan.timesteps, plan.coefficients, after, strict=True):
        x_t = np.sqrt(ALPHA_BAR[t]) * x0 + np.sqrt(1 - ALPHA_BAR[t]) * eps
        expected = np.sqrt(ab_next) * x0 + np.sqrt(1 - ab_next) * eps
        assert a * x_t + b * x0 == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("grid", SERVED)
@given(st.integers(0, 998), st.integers(1, 1200))
def test_a_plan_in_mid_flight_starts_where_the_sample_is_on_every_served_grid(grid, start, steps):
    timesteps = SERVED[grid].plan(steps, start, 0.0, before=start + 1).timesteps
    assert timesteps[0] == start
    assert len(timesteps) == min(steps, start + 1)
    assert np.all(np.diff(timesteps) < 0)


def test_a_new_2m_plan_begins_at_the_noisy_end_of_its_grid_with_a_step_of_first_order():
    for steps in (2, 5, 40):
        plan = MULTISTEP.plan(steps, 999, 0.0)
        noisy = plan.timesteps[0]
        assert 2 * LAMBDA[noisy] == pytest.approx(LOGSNR_RANGE[0], abs=0.1)
        # re-planned before its first step it stays there
        assert MULTISTEP.plan(steps + 3, int(noisy), 0.0).timesteps[0] == noisy
        first = ddim_coefficients(ALPHA_BAR[noisy], ALPHA_BAR[plan.timesteps[1]], 0.0)
        np.testing.assert_allclose(plan.coefficients[:1], first, rtol=1e-9, atol=1e-15)
        assert np.all(plan.coefficients[1:-1, 2] < 0)  # the others are of second order
        assert plan.coefficients[-1].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("grid", ["logsnr", "linspace", "trailing"])
@pytest.mark.parametrize("num_steps", [5, 8, 20, 62])
def test_what_is_left_of_a_2m_plan_has_the_coefficients_of_the_whole(num_steps, grid):
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    whole = sampler_coefficients("dpmpp_2m", ALPHA_BAR, timesteps, 0.0)
    for k in range(1, num_steps - 1):
        left = timesteps[k:]
        coefficients = sampler_coefficients(
            "dpmpp_2m", ALPHA_BAR, left, 0.0, before=int(timesteps[k - 1])
        )
        np.testing.assert_array_equal(coefficients, whole[k:])
        alone = sampler_coefficients("dpmpp_2m", ALPHA_BAR, left, 0.0)
        assert alone[0, 2] == 0  # without `before` it would be of first order


@given(st.integers(2, 990), st.integers(1, 200), st.integers(1, 40))
def test_a_2m_plan_in_mid_flight_extrapolates_unless_its_first_step_is_stretched(start, gap, steps):
    before = min(start + gap, 999)
    plan = MULTISTEP.plan(steps, start, 0.0, before)
    ends = len(plan.timesteps) == 1
    h_before = LAMBDA[start] - LAMBDA[before]
    h = np.inf if ends else LAMBDA[plan.timesteps[1]] - LAMBDA[start]
    a, b, c, d = plan.coefficients[0]
    # algorithm 2: D = (1 + 1/(2r))·x0 − 1/(2r)·x0_prev, r = h_before/h
    weight = 0.0 if h > 2 * h_before else h / (2 * h_before)
    ab_prev = 1.0 if ends else ALPHA_BAR[plan.timesteps[1]]
    gain = -np.sqrt(ab_prev) * np.expm1(-h)
    expected = (
        np.sqrt((1 - ab_prev) / (1 - ALPHA_BAR[start])),
        gain * (1 + weight),
        -gain * weight,
    )
    assert (a, b, c) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert d == 0


def test_a_2m_plan_cut_short_in_mid_flight_falls_back_to_first_order():
    whole = MULTISTEP.plan(20, 999, 0.0)
    start, before = int(whole.timesteps[5]), int(whole.timesteps[4])
    for steps, second_order in ((20, True), (14, True), (9, True), (4, False), (2, False)):
        plan = MULTISTEP.plan(steps, start, 0.0, before)
        assert (plan.coefficients[0, 2] != 0) == second_order
