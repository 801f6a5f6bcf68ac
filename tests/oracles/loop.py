"""The sampling loop on a denoiser that is a formula: float64, and every x_t is kept."""

import numpy as np
import torch

from models.guidance import branch_rows
from models.guided_step import GuidedStep, x0_conversion
from models.sampling import denoise
from models.schedules import make_alpha_bar

T = 1000
ALPHA_BAR = make_alpha_bar("cosine", T)
NO_CLIP = 1e9
SAMPLERS = [
    ("ddim", 0.0),
    ("ddim", 0.5),
    ("ddim", 1.0),
    ("ddpm", 0.0),
    ("ddpm_beta", 0.0),
    ("dpmpp_2m", 0.0),
]
"""Every sampler with its eta."""


class FormulaNetwork(torch.nn.Module):
    """formula(x_t, alpha_bar_t) → output, behind `DenoisingNetwork`; FiLM parameters carry t."""

    film_dim = 1

    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def time_part(self, timesteps):
        return timesteps.double()[:, None]

    def denoise(self, x_t, film):
        ab = torch.from_numpy(ALPHA_BAR)[film[:, 0].long()]
        return self.formula(x_t, ab.view(-1, *[1] * (x_t.ndim - 1)))


def guided_step(formula, prediction_type="sample", clip=NO_CLIP):
    step = GuidedStep(FormulaNetwork(formula), ALPHA_BAR, prediction_type, clip).double()
    conversion = torch.from_numpy(x0_conversion(prediction_type, ALPHA_BAR))
    step.register_buffer("conversion", conversion)
    return step


def follow(step, timesteps, coefficients, draw):
    """Coefficients in float64 on any timesteps; draw(t) → [rows, horizon, action_dim].

    Returns float64 [steps, rows, horizon, action_dim], x_t after every step.
    """
    x_t = torch.from_numpy(draw(T))
    x0_prev = torch.full_like(x_t, 1e3)  # a first step that looks at it is wrong, and shows
    rows = branch_rows(np.zeros(len(x_t), np.float32), np.arange(len(x_t)))
    indices = [
        torch.from_numpy(i)
        for i in (rows.request_of, rows.condition_of, rows.cond_row, rows.uncond_row)
    ]
    kept = []
    for t, abcd in zip(timesteps, coefficients, strict=True):
        x_t, x0_prev = step(
            x_t,
            x0_prev,
            torch.full((len(x_t),), int(t)),
            torch.zeros(2 * len(x_t), 1, dtype=torch.float64),
            *indices,
            torch.zeros(len(x_t)),
            torch.from_numpy(abcd).expand(len(x_t), 4),
            torch.from_numpy(draw(int(t))),
        )
        kept.append(x_t.numpy())
    return np.stack(kept)


def follow_denoise(formula, sampling, draw):
    """`models.sampling.denoise` itself, whose coefficients are float32; returns as `follow`."""
    step = guided_step(formula)
    kept = []

    def keeping(*inputs):
        x_prev, x0 = step(*inputs)
        kept.append(x_prev.numpy())
        return x_prev, x0

    rows = len(draw(T))
    last = denoise(keeping, ALPHA_BAR, torch.zeros(2 * rows, 1).double(), sampling, draw)
    np.testing.assert_array_equal(kept[-1], last.numpy())
    return np.stack(kept)
