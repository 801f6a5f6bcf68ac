"""Coefficients and trajectories against Hugging Face diffusers, wherever its own are right.

Where they are wrong (found in 0.42.1) a test shows it and holds ours to the closed form instead. If
such a test fails on a later diffusers, that has been mended: widen the comparison and delete it.
"""

from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from models.grids import END, GridName, make_timesteps
from models.samplers import sampler_coefficients
from tests.oracles.loop import ALPHA_BAR, NO_CLIP, T, follow, guided_step

AB = torch.from_numpy(ALPHA_BAR)
# DPMSolverMultistepScheduler.set_timesteps makes an array of a tensor, which numpy warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

GRIDS = get_args(GridName)
DIFFUSERS_NAME = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
VARIANCE_TYPE = {"ddpm": "fixed_small", "ddpm_beta": "fixed_large"}
RIGHT_FOR_DDIM = [
    *(("leading", n) for n in (1, 5, 7, 8, 10, 50)),
    *(("trailing", n) for n in (1, 5, 8, 10, 50, 1000)),
]
"""Where diffusers' fixed stride leads from each timestep to the next one; with 1000 steps all grids
are one."""
SHAPE = (3, 2, 4)
"""Rows, horizon, action_dim."""


def draw(t):
    return np.random.default_rng(t).standard_normal(SHAPE)


def in_float64(scheduler):
    """With our alpha_bar in everything that it reads."""
    scheduler.alphas_cumprod = AB
    scheduler.alphas = torch.cat([AB[:1], AB[1:] / AB[:-1]])
    scheduler.betas = 1 - scheduler.alphas
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.alpha_t, scheduler.sigma_t = AB.sqrt(), (1 - AB).sqrt()
    scheduler.lambda_t = scheduler.alpha_t.log() - scheduler.sigma_t.log()
    scheduler.sigmas = scheduler.sigma_t / scheduler.alpha_t
    return scheduler


def ddim_scheduler(spacing, num_steps, prediction_type="sample", **options):
    options = {"clip_sample": False, **options}
    name = DIFFUSERS_NAME[prediction_type]
    scheduler = DDIMScheduler(timestep_spacing=spacing, prediction_type=name, **options)
    in_float64(scheduler).set_timesteps(num_steps)
    return scheduler


def ddpm_scheduler(timesteps, sampler, prediction_type="sample", **options):
    scheduler = DDPMScheduler(
        variance_type=VARIANCE_TYPE[sampler],
        prediction_type=DIFFUSERS_NAME[prediction_type],
        **{"clip_sample": False, **options},
    )
    in_float64(scheduler).set_timesteps(timesteps=timesteps.tolist())
    return scheduler


def dpm_scheduler(spacing, num_steps, prediction_type="sample", **options):
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        timestep_spacing=spacing,
        prediction_type=DIFFUSERS_NAME[prediction_type],
        **options,
    )
    in_float64(scheduler).set_timesteps(num_steps)
    # its own are float32
    ab = AB[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1 - ab) / ab).sqrt(), torch.zeros(1)])
    return scheduler


def network(prediction_type, size=0.9):
    """A smooth denoiser, x0 between −size and size, as formula(x_t, alpha_bar_t) → output."""

    def formula(x_t, ab):
        x0 = size * torch.sin(x_t + ab)
        eps = (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()
        v = ab.sqrt() * eps - (1 - ab).sqrt() * x0
        return {"epsilon": eps, "v": v, "sample": x0}[prediction_type]

    return formula


def ours(sampler, eta, timesteps, prediction_type, size=0.9, clip=NO_CLIP):
    coefficients = sampler_coefficients(sampler, ALPHA_BAR, timesteps, eta)
    step = guided_step(network(prediction_type, size), prediction_type, clip)
    return follow(step, timesteps, coefficients, draw)


def theirs(scheduler, prediction_type, step_options, size=0.9):
    """Their loop on the same network, which sees their x_t; step_options(t) → of scheduler.step."""
    formula = network(prediction_type, size)
    x_t = torch.from_numpy(draw(T))
    kept = []
    for t in scheduler.timesteps:
        output = formula(x_t, AB[t])
        x_t = scheduler.step(output, t, x_t, **step_options(int(t))).prev_sample
        kept.append(x_t.numpy())
    return np.stack(kept)


def ddim_noise(eta, **options):
    return lambda t: {"eta": eta, "variance_noise": torch.from_numpy(draw(t)), **options}


@pytest.fixture
def ddpm_noise(monkeypatch):
    """DDPMScheduler.step takes no noise, so the function that draws it is replaced."""
    given = {}
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: given["noise"]
    )

    def noise_of(timesteps, end=0.0):
        def options(t):
            noise = draw(t) if t != timesteps[-1] else np.full(SHAPE, end)
            given["noise"] = torch.from_numpy(noise)
            return {}

        return options

    noise_of.given = given
    return noise_of


@pytest.fixture
def dpm_in_float64(monkeypatch):
    """DPMSolverMultistepScheduler.step rounds x_t to torch.float32; here that is float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)


def assert_equal_steps(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)


UNIT = torch.eye(3, dtype=torch.float64)[:, :, None]
"""x_t, x0 and noise whose update is (a, b, d): an update is linear."""


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("grid", "num_steps"), RIGHT_FOR_DDIM)
def test_ddim_coefficients(grid, num_steps, eta):
    scheduler = ddim_scheduler(grid, num_steps)
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    np.testing.assert_array_equal(timesteps, scheduler.timesteps.numpy())
    x_t, x0, noise = UNIT
    abd = [
        scheduler.step(x0, t, x_t, eta=eta, variance_noise=noise).prev_sample[:, 0].numpy()
        for t in scheduler.timesteps
    ]
    coefficients = sampler_coefficients("ddim", ALPHA_BAR, timesteps, eta)
    np.testing.assert_allclose(coefficients[:, [0, 1, 3]], abd, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction_type", DIFFUSERS_NAME)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("grid", "num_steps"), [case for case in RIGHT_FOR_DDIM if case[1] < T])
def test_ddim_trajectories(grid, num_steps, eta, prediction_type):
    scheduler = ddim_scheduler(grid, num_steps, prediction_type)
    assert_equal_steps(
        ours("ddim", eta, make_timesteps(grid, num_steps, ALPHA_BAR), prediction_type),
        theirs(scheduler, prediction_type, ddim_noise(eta)),
    )


@pytest.mark.parametrize(("eta", "prediction_type"), [(0.0, "epsilon"), (0.5, "v")])
def test_ddim_trajectories_of_all_timesteps(eta, prediction_type):
    scheduler = ddim_scheduler("trailing", T, prediction_type)
    assert_equal_steps(
        ours("ddim", eta, np.arange(T)[::-1], prediction_type),
        theirs(scheduler, prediction_type, ddim_noise(eta)),
    )


@pytest.mark.parametrize("prediction_type", DIFFUSERS_NAME)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("grid", "num_steps"), [("trailing", 8), ("leading", 10)])
def test_ddim_with_clipped_x0(grid, num_steps, eta, prediction_type):
    scheduler = ddim_scheduler(grid, num_steps, prediction_type, clip_sample=True)
    mine = ours(
        "ddim", eta, make_timesteps(grid, num_steps, ALPHA_BAR), prediction_type, size=3.0, clip=1.0
    )
    options = ddim_noise(eta, use_clipped_model_output=True)
    assert_equal_steps(mine, theirs(scheduler, prediction_type, options, size=3.0))
    # what it does unless told otherwise, the clipped x0 with the eps of the unclipped, is not ours
    stale = theirs(scheduler, prediction_type, ddim_noise(eta), size=3.0)
    assert np.abs(stale - mine).max() > 0.1


@pytest.mark.parametrize(
    ("grid", "num_steps"),
    [*((grid, n) for grid in GRIDS for n in (1, 5, 7, 8, 10, 50)), ("trailing", 1000)],
)
@pytest.mark.parametrize("sampler", VARIANCE_TYPE)
def test_ddpm_coefficients(sampler, grid, num_steps, ddpm_noise):
    """Its previous timestep is its grid's next one, so it is right on any grid."""
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    scheduler = ddpm_scheduler(timesteps, sampler)
    x_t, x0, noise = UNIT
    abd = []
    for t in scheduler.timesteps:
        # it adds noise in a last step that is not at t = 0: 1e-10 (fixed_small), much (fixed_large)
        ddpm_noise.given["noise"] = noise * (t != timesteps[-1])
        abd.append(scheduler.step(x0, t, x_t).prev_sample[:, 0].numpy())
    coefficients = sampler_coefficients(sampler, ALPHA_BAR, timesteps, 0.0)
    np.testing.assert_allclose(coefficients[:, [0, 1, 3]], abd, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction_type", DIFFUSERS_NAME)
@pytest.mark.parametrize("num_steps", [1, 8, 50])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sampler", VARIANCE_TYPE)
def test_ddpm_trajectories(sampler, grid, num_steps, prediction_type, ddpm_noise):
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    scheduler = ddpm_scheduler(timesteps, sampler, prediction_type)
    assert_equal_steps(
        ours(sampler, 0.0, timesteps, prediction_type),
        theirs(scheduler, prediction_type, ddpm_noise(timesteps)),
    )


@pytest.mark.parametrize("sampler", VARIANCE_TYPE)
def test_ddpm_trajectories_of_all_timesteps(sampler, ddpm_noise):
    timesteps = np.arange(T)[::-1]
    scheduler = ddpm_scheduler(timesteps, sampler, "epsilon")
    assert_equal_steps(
        ours(sampler, 0.0, timesteps, "epsilon"),
        theirs(scheduler, "epsilon", ddpm_noise(timesteps)),
    )


@pytest.mark.parametrize("prediction_type", DIFFUSERS_NAME)
@pytest.mark.parametrize("sampler", VARIANCE_TYPE)
def test_ddpm_with_clipped_x0(sampler, prediction_type, ddpm_noise):
    timesteps = make_timesteps("trailing", 8, ALPHA_BAR)
    scheduler = ddpm_scheduler(timesteps, sampler, prediction_type, clip_sample=True)
    assert_equal_steps(
        ours(sampler, 0.0, timesteps, prediction_type, size=3.0, clip=1.0),
        theirs(scheduler, prediction_type, ddpm_noise(timesteps), size=3.0),
    )


DPM_GRIDS = [
    *(
        (spacing, n)
        for spacing in ("linspace", "leading", "trailing")
        for n in (1, 2, 5, 8, 10, 50)
    ),
    ("trailing", 1000),
]


@pytest.mark.parametrize(("spacing", "num_steps"), DPM_GRIDS)
def test_2m_coefficients(spacing, num_steps):
    """Of its update functions; which of them its `step` takes is in the trajectories."""
    scheduler = dpm_scheduler(spacing, num_steps)
    x_t, x0, x0_prev = UNIT
    abc = []
    for i in range(num_steps):
        scheduler._step_index = i
        if i in {0, num_steps - 1}:
            x_prev = scheduler.dpm_solver_first_order_update(x0, sample=x_t)
        else:
            x_prev = scheduler.multistep_dpm_solver_second_order_update([x0_prev, x0], sample=x_t)
        abc.append(x_prev[:, 0].numpy())
    timesteps = scheduler.timesteps.numpy()
    coefficients = sampler_coefficients("dpmpp_2m", ALPHA_BAR, timesteps, 0.0)
    np.testing.assert_allclose(coefficients[:, :3], abc, rtol=1e-9, atol=1e-12)
    assert not coefficients[:, 3].any()


@pytest.mark.parametrize(
    ("spacing", "num_steps", "prediction_type"),
    [
        *(
            (*grid, prediction_type)
            for grid in DPM_GRIDS[:-1]
            for prediction_type in DIFFUSERS_NAME
        ),
        (*DPM_GRIDS[-1], "epsilon"),
    ],
)
@pytest.mark.usefixtures("dpm_in_float64")
def test_2m_trajectories(spacing, num_steps, prediction_type):
    """Of its `step`, which decides where the order is lower."""
    scheduler = dpm_scheduler(spacing, num_steps, prediction_type)
    assert_equal_steps(
        ours("dpmpp_2m", 0.0, scheduler.timesteps.numpy(), prediction_type),
        theirs(scheduler, prediction_type, lambda t: {}),
    )


@pytest.mark.parametrize("prediction_type", DIFFUSERS_NAME)
@pytest.mark.usefixtures("dpm_in_float64")
def test_2m_with_clipped_x0(prediction_type):
    # its dynamic thresholding with all its bounds at 1 is clipping
    scheduler = dpm_scheduler("trailing", 8, prediction_type, thresholding=True)
    mine = ours("dpmpp_2m", 0.0, scheduler.timesteps.numpy(), prediction_type, size=3.0, clip=1.0)
    assert_equal_steps(mine, theirs(scheduler, prediction_type, lambda t: {}, size=3.0))


@pytest.mark.parametrize(
    ("grid", "num_steps"),
    [
        *((grid, n) for grid in ("trailing", "leading") for n in (1, 2, 5, 8, 10, 50, 100, 1000)),
        *(("leading", n) for n in (3, 7, 16, 600)),
        *(("linspace", n) for n in (2, 3, 8, 10, 50, 1000)),
    ],
)
def test_grids(grid, num_steps):
    """Where no point is halfway between two timesteps: theirs goes to the even one, ours up.

    One step of linspace is left out: theirs visits t = 0, where a new sample is not.
    """
    scheduler = ddim_scheduler(grid, num_steps)
    np.testing.assert_array_equal(
        make_timesteps(grid, num_steps, ALPHA_BAR), scheduler.timesteps.numpy()
    )


# --- where diffusers is wrong


X0, EPS = (torch.from_numpy(draw(t)) for t in (2000, 2001))


def forward(t):
    """The x_t of (X0, EPS): a perfect predictor goes along these."""
    ab = torch.tensor(1.0) if t == END else AB[t]
    return ab.sqrt() * X0 + (1 - ab).sqrt() * EPS


@pytest.mark.parametrize(
    ("grid", "num_steps"), [("linspace", 10), ("linspace", 8), ("trailing", 6), ("trailing", 7)]
)
def test_ddim_of_diffusers_steps_to_a_timestep_that_is_not_its_next(grid, num_steps):
    scheduler = ddim_scheduler(grid, num_steps)
    t, t_next = scheduler.timesteps[:2].tolist()
    x = scheduler.step(X0, t, forward(t)).prev_sample
    stride = T // num_steps
    assert t - stride != t_next
    torch.testing.assert_close(x, forward(t - stride))
    assert (x - forward(t_next)).abs().max() > 1e-3
    # ours
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    a, b, _, _ = sampler_coefficients("ddim", ALPHA_BAR, timesteps, 0.0)[0]
    torch.testing.assert_close(a * forward(timesteps[0]) + b * X0, forward(timesteps[1]))


@pytest.mark.parametrize(
    ("grid", "num_steps", "options"),
    [("trailing", 7, {}), ("trailing", 11, {}), ("leading", 600, {"steps_offset": 1})],
)
def test_ddim_of_diffusers_ends_at_a_timestep_and_leaves_noise(grid, num_steps, options):
    """With a perfect predictor; a closed form for ours is in `test_closed_forms`."""
    scheduler = ddim_scheduler(grid, num_steps, **options)
    x = forward(scheduler.timesteps[0])
    for t in scheduler.timesteps:
        x = scheduler.step(X0, t, x).prev_sample
    end = int(scheduler.timesteps[-1]) - T // num_steps
    assert end >= 0
    assert (x - X0).abs().max() > 1e-3
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    coefficients = sampler_coefficients("ddim", ALPHA_BAR, timesteps, 0.0)
    x = follow(guided_step(lambda x_t, ab: X0), timesteps, coefficients, draw)[-1]
    np.testing.assert_allclose(x, X0.numpy(), atol=1e-12)


def test_trailing_of_diffusers_has_a_timestep_too_many_for_some_counts():
    timesteps = ddim_scheduler("trailing", 61).timesteps
    assert len(timesteps) == 62
    assert timesteps[-1] == -1
    assert len(make_timesteps("trailing", 61, ALPHA_BAR)) == 61


def test_ddpm_of_diffusers_adds_noise_in_its_last_step(ddpm_noise):
    """With fixed_large, if that is not at t = 0."""
    timesteps = make_timesteps("trailing", 10, ALPHA_BAR)
    scheduler = ddpm_scheduler(timesteps, "ddpm_beta")
    ddpm_noise(timesteps, end=1.0)(timesteps[-1])
    x = scheduler.step(X0, timesteps[-1], forward(timesteps[-1])).prev_sample
    beta = 1 - ALPHA_BAR[timesteps[-1]]
    torch.testing.assert_close(x - X0, torch.full_like(X0, beta**0.5))
    assert sampler_coefficients("ddpm_beta", ALPHA_BAR, timesteps, 0.0)[-1].tolist() == [0, 1, 0, 0]


def test_2m_of_diffusers_is_nan_on_all_timesteps_of_linspace():
    """1000 of its 1001 rounded points: one is there twice, a step of no length."""
    scheduler = dpm_scheduler("linspace", T)
    assert len(set(scheduler.timesteps.tolist())) < T
    assert np.isnan(theirs(scheduler, "sample", lambda t: {})[-1]).all()
    assert np.isfinite(ours("dpmpp_2m", 0.0, np.arange(T)[::-1], "sample")).all()
