"""Noise schedules against diffusers and the figures that the design relies on."""

import numpy as np
import pytest
from diffusers import DDIMScheduler

from models.schedules import make_alpha_bar


@pytest.mark.parametrize(
    ("name", "diffusers_name"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_equals_diffusers(name, diffusers_name):
    theirs = DDIMScheduler(num_train_timesteps=1000, beta_schedule=diffusers_name)
    # theirs is computed in float32
    np.testing.assert_allclose(
        make_alpha_bar(name, 1000), theirs.alphas_cumprod.double().numpy(), rtol=2e-3, atol=1e-9
    )


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("num_timesteps", [2, 100, 1000])
def test_strictly_decreasing_from_nearly_one_to_nearly_zero(name, num_timesteps):
    alpha_bar = make_alpha_bar(name, num_timesteps)
    assert alpha_bar.dtype == np.float64
    assert alpha_bar.shape == (num_timesteps,)
    assert np.all(np.diff(alpha_bar) < 0)
    assert 0 < alpha_bar[-1] < 0.01
    assert alpha_bar[0] < 1


def test_cosine_last_timestep_multiplies_an_epsilon_error_by_twenty_thousand():
    # DESIGN §5: why epsilon prediction is not the served default
    assert 1 / np.sqrt(make_alpha_bar("cosine", 1000)[-1]) == pytest.approx(20_291, rel=1e-3)


def test_unknown_names_and_too_few_timesteps_are_refused():
    with pytest.raises(ValueError, match="schedule: expected 'linear' or 'cosine', got 'sine'"):
        make_alpha_bar("sine", 1000)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        make_alpha_bar("cosine", 1)
