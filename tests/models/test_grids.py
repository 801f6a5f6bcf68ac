"""Timestep grids: strictly decreasing, the right ends, and equal to diffusers where it is right."""

import numpy as np
import pytest
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from models.grids import make_timesteps

GRIDS = ["trailing", "linspace", "leading"]


@pytest.mark.parametrize("grid", GRIDS)
@given(start=st.integers(0, 1500), choice=st.floats(0, 1))
def test_strictly_decreasing_integers_within_range(grid, start, choice):
    num_steps = 1 + int(choice * start)
    timesteps = make_timesteps(grid, num_steps, start)
    assert timesteps.shape == (num_steps,)
    assert timesteps.dtype == np.int64
    assert np.all(np.diff(timesteps) < 0)
    assert timesteps[-1] >= 0
    assert timesteps[0] <= start


@pytest.mark.parametrize("grid", ["trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 333, 1000])
def test_served_grids_begin_at_start_for_any_step_count(grid, num_steps):
    assert make_timesteps(grid, num_steps, 999)[0] == 999


@pytest.mark.parametrize("num_steps", [1, 2, 5, 8, 10, 50, 100, 1000])
@pytest.mark.parametrize("grid", ["trailing", "leading"])
def test_equals_diffusers_where_the_step_count_divides(grid, num_steps):
    theirs = DDIMScheduler(num_train_timesteps=1000, timestep_spacing=grid)
    theirs.set_timesteps(num_steps)
    np.testing.assert_array_equal(make_timesteps(grid, num_steps, 999), theirs.timesteps.numpy())


def test_leading_depends_on_the_step_count():
    # why it is not served: elasticity would change the starting noise level
    assert make_timesteps("leading", 10, 999)[0] != make_timesteps("leading", 5, 999)[0]


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(ValueError, match=r"num_steps: expected 1\.\.1000 .* got"):
        make_timesteps("trailing", num_steps, 999)
