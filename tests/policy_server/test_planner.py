"""Plans: how many steps fit, and where they lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy_server.simulation import ALPHA_BAR, World

WORLD = World(min_steps=3, max_useful_steps=20)


@given(st.floats(-1, 1), st.sampled_from([1, 2]), st.integers(0, 19))
def test_elastic_steps_stay_in_range_and_fit_if_they_can(time_s, rows, executed):
    planner = WORLD.planner
    steps = planner.elastic_steps(time_s, rows, executed)
    fewest = max(3 - executed, 1)
    assert fewest <= steps <= max(20 - executed, fewest)
    if steps > fewest:
        assert planner.remaining_s(steps, rows) <= time_s + 1e-9
    if steps < 20 - executed:
        assert planner.remaining_s(steps + 1, rows) > time_s - 1e-9


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
