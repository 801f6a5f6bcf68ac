"""Timestep grids: strictly decreasing, with the right ends (against diffusers: tests/oracles)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.grids import LOGSNR_RANGE, make_timesteps
from models.schedules import make_alpha_bar

GRIDS = ["trailing", "linspace", "leading", "logsnr"]
ALPHA_BAR = make_alpha_bar("cosine", 1000)
LOGSNR = np.log(ALPHA_BAR / (1 - ALPHA_BAR))


@pytest.mark.parametrize("grid", GRIDS)
@given(start=st.integers(0, 999), choice=st.floats(0, 1))
def test_strictly_decreasing_integers_within_range(grid, start, choice):
    num_steps = 1 + int(choice * start)
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR, start)
    assert timesteps.shape == (num_steps,)
    assert timesteps.dtype == np.int64
    assert np.all(np.diff(timesteps) < 0)
    assert timesteps[-1] >= 0
    assert timesteps[0] <= start


@pytest.mark.parametrize("grid", ["trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 333, 1000])
def test_served_grids_begin_at_start_for_any_step_count(grid, num_steps):
    assert make_timesteps(grid, num_steps, ALPHA_BAR)[0] == 999


def test_leading_depends_on_the_step_count():
    # why it is not served: elasticity would change the starting noise level
    assert make_timesteps("leading", 10, ALPHA_BAR)[0] != make_timesteps("leading", 5, ALPHA_BAR)[0]


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(ValueError, match=r"num_steps: expected 1\.\.1000 .* got"):
        make_timesteps("trailing", num_steps, ALPHA_BAR)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 50, 900])
def test_a_new_sample_on_the_logsnr_grid_begins_at_the_noisy_end_for_any_step_count(num_steps):
    first = make_timesteps("logsnr", num_steps, ALPHA_BAR)[0]
    assert first == np.abs(LOGSNR - LOGSNR_RANGE[0]).argmin()


@pytest.mark.parametrize(("num_steps", "first"), [(988, 987), (989, 999), (1000, 999)])
def test_a_logsnr_grid_with_more_steps_than_its_range_has_timesteps_begins_at_the_very_top(
    num_steps, first
):
    assert make_timesteps("logsnr", num_steps, ALPHA_BAR)[0] == first


@pytest.mark.parametrize("start", [-1, 1000])
def test_a_start_that_is_no_timestep_is_refused(start):
    with pytest.raises(ValueError, match=r"start: expected 0\.\.999"):
        make_timesteps("trailing", 1, ALPHA_BAR, start)


@given(start=st.integers(0, 998), choice=st.floats(0, 1))
def test_a_sample_in_mid_flight_goes_on_where_it_is(start, choice):
    for grid in ("trailing", "linspace", "logsnr"):
        assert make_timesteps(grid, 1 + int(choice * start), ALPHA_BAR, start)[0] == start


@pytest.mark.parametrize("num_steps", [4, 8, 16])
def test_the_logsnr_grid_is_as_uniform_as_integers_allow(num_steps):
    timesteps = make_timesteps("logsnr", num_steps, ALPHA_BAR)
    reachable = np.abs(np.diff(LOGSNR)[timesteps - 1])  # between neighbouring timesteps
    assert np.all(np.abs(LOGSNR[timesteps[[0, -1]]] - LOGSNR_RANGE) <= reachable[[0, -1]])
    ideal = np.linspace(*LOGSNR[timesteps[[0, -1]]], num_steps)
    assert np.all(np.abs(LOGSNR[timesteps] - ideal) <= reachable)


@pytest.mark.parametrize("num_steps", [1, 7, 8, 16, 500, 1000])
def test_the_logsnr_grid_takes_the_nearest_unused_timestep(num_steps):
    """Against the slow obvious version, one point after the other."""
    noisy, clean = (int(np.abs(LOGSNR - end).argmin()) for end in LOGSNR_RANGE)
    top = noisy if num_steps <= noisy + 1 else 999
    taken: list[int] = []
    for value in np.linspace(LOGSNR[top], LOGSNR[clean], num_steps):
        position = np.interp(-value, -LOGSNR, np.arange(1000))
        unused = [t for t in range(top + 1) if t not in taken]
        taken.append(min(unused, key=lambda t: abs(t - position)))
    expected = sorted(taken, reverse=True)
    assert make_timesteps("logsnr", num_steps, ALPHA_BAR).tolist() == expected


def test_an_unknown_grid_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match=r"grid: expected one of trailing, .*logsnr, got 'karras'"):
        make_timesteps("karras", 8, ALPHA_BAR)
