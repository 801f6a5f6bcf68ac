"""Shared: a small untrained policy, as real as a trained one for everything but success."""

from dataclasses import replace

import pytest
import torch

from client.specs import ArraySpec, PolicySpec
from models import checkpoint, quantize
from models.export import export_graphs
from models.instruction_encoder import PACKAGE, weights_sha256
from models.networks.film_mlp import FilmMlpConfig
from models.policy import DiffusionConfig, DiffusionPolicy
from models.vision import VisionConfig

TINY_SPEC = PolicySpec(
    task="tiny",
    observation={"state": ArraySpec((2, 3), "float32", ("x", "y", "z"))},
    action_names=("dx", "dy"),
    action_minimum=(-1.0, -1.0),
    action_maximum=(1.0, 1.0),
    horizon=8,
    obs_steps=2,
    exec_steps=4,
    control_period_s=0.01,
)
CAMERA_SPEC = replace(
    TINY_SPEC,
    observation={
        "left": ArraySpec((2, 8, 10, 3), "uint8"),
        "state": ArraySpec((2, 3), "float32", ("x", "y", "z")),
        "right": ArraySpec((2, 6, 6, 3), "uint8"),
    },
)
TINY_VISION = VisionConfig(crop=(5, 6), channels=(8, 16), key_points=4, features=3)


def make_policy(
    prediction_type="sample", spec=TINY_SPEC, seed=0, width=32, network=None, vision=None
):
    """An untrained policy whose every weight matters (no layer is left at zero).

    Args:
        prediction_type: what its network outputs.
        spec: what it takes and gives.
        seed: of the weights.
        width: of a small FiLM MLP, its network if none is given.
        network: configuration of another network, for `spec` and 5 numbers an instruction.
        vision: sizes of its camera encoders, if `spec` has cameras.
    """
    torch.manual_seed(seed)
    network = network or replace(
        FilmMlpConfig.for_spec(spec, 5, vision),
        width=width,
        num_blocks=2,
        condition_dim=16,
        instruction_features=8,
    )
    diffusion = DiffusionConfig(prediction_type=prediction_type)
    policy = DiffusionPolicy(spec, network, diffusion, vision)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        policy.instruction_projection.matrix.normal_(std=0.3)
    return policy.eval()


def save_checkpoint(folder, policy, min_steps=2, max_useful_steps=8, model_id="tiny", **fields):
    """A real checkpoint folder of an untrained policy."""
    manifest = checkpoint.Manifest(
        model_id=model_id,
        spec=policy.spec,
        network=policy.network.config,
        diffusion=policy.diffusion,
        defaults=checkpoint.SamplingDefaults(),
        min_steps=min_steps,
        max_useful_steps=max_useful_steps,
        instruction_encoder={"package": PACKAGE, "sha256": weights_sha256()},
        command="none: untrained",
        vision=policy.vision,
        **fields,
    )
    return checkpoint.save(folder, manifest, policy)


def export_with_int8(policy, folder):
    """All graphs, in int8 what would be if this network were of the usual size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "FEWEST_WEIGHTS", 512)
        export_graphs(policy, folder, int8=True)
