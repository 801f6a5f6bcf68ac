"""FiLM parameters: what they are where neither time nor condition says anything."""

from dataclasses import replace

import pytest
import torch

from models.networks.film_mlp import FilmMlpConfig
from models.networks.unet1d import Unet1dConfig
from tests.policies import TINY_SPEC, make_policy

CONFIGS = [
    replace(FilmMlpConfig.for_spec(TINY_SPEC, 5), width=16, num_blocks=3),
    replace(Unet1dConfig.for_spec(TINY_SPEC, 5), widths=(16, 24, 32)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_every_block_scales_by_one_and_shifts_by_nothing(config):
    network = make_policy(network=config).network
    seen = []
    for block in network.modules():
        if type(block).__name__ == "_Block":
            block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1:]))
    with torch.no_grad():
        for parameter in network.time_mlp[-1].parameters():
            parameter.zero_()
        network.denoise(torch.randn(3, 8, 2), network.time_part(torch.tensor([0, 500, 999])))
    assert len(seen) == {"film_mlp": 3, "unet1d": 12}[config.kind]
    for scale, shift in seen:
        assert torch.equal(scale, torch.ones_like(scale))
        assert torch.equal(shift, torch.zeros_like(shift))
