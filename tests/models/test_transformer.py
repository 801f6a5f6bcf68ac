"""The transformer whose condition tokens are computed once is the usual one, written apart."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from models.networks.transformer import TransformerConfig
from tests.policies import TINY_SPEC, make_policy

WIDTH, HEADS = 24, 3
CONFIG = replace(
    TransformerConfig.for_spec(TINY_SPEC, 5), width=WIDTH, num_blocks=2, num_heads=HEADS
)


def attention(q, k, v, out):
    """Attention as torch has it, with these four linear layers, given as (weight, bias)."""
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    weights, biases = zip(q, k, v, strict=True)
    module.load_state_dict(
        {
            "in_proj_weight": torch.cat(weights),
            "in_proj_bias": torch.cat(biases),
            "out_proj.weight": out.weight,
            "out_proj.bias": out.bias,
        }
    )
    return module.eval()


def thirds(linear):
    return zip(linear.weight.chunk(3), linear.bias.chunk(3), strict=True)


def usual(network, x_t, timesteps, observation, instruction, drop):
    """The whole network in one pass, tokens and all."""
    config, tokens = network.config, []
    numbers, patches = observation.split(
        [config.steps_dim, len(observation[0]) - config.steps_dim], 1
    )
    for i, step in enumerate(numbers.chunk(2, dim=1)):
        tokens.append(network.observation_mlp(step) + network.observation_positions[i])
    said = network.instruction_mlp(instruction)
    said[drop] = network.null_instruction
    tokens.append(said)
    for i, patch in enumerate(patches.chunk(config.num_patches or 1, dim=1)):
        if config.num_patches:
            tokens.append(network.patch_mlp(patch) + network.patch_positions[i])
    tokens = torch.stack(tokens, dim=1)
    norm, keys_values = network.keys_values
    of_blocks = list(
        zip(
            keys_values.weight.chunk(2 * CONFIG.num_blocks),
            keys_values.bias.chunk(2 * CONFIG.num_blocks),
            strict=True,
        )
    )
    film = network.time_mlp(timesteps)[:, None].chunk(4 * CONFIG.num_blocks, dim=-1)
    h = network.read_in(x_t) + network.positions
    for i, block in enumerate(network.blocks):
        scale, shift, mlp_scale, mlp_shift = film[4 * i : 4 * i + 4]
        own = F.layer_norm(h, (WIDTH,)) * (1 + scale) + shift
        h = h + attention(*thirds(block.self_qkv), block.self_out)(own, own, own)[0]
        cross = attention(
            (block.cross_q.weight, block.cross_q.bias),
            *of_blocks[2 * i : 2 * i + 2],
            block.cross_out,
        )
        h = h + cross(block.cross_norm(h), norm(tokens), norm(tokens))[0]
        own = F.layer_norm(h, (WIDTH,)) * (1 + mlp_scale) + mlp_shift
        h = h + block.narrow(F.gelu(block.widen(own)))
    return network.read_out(network.norm_out(h))


@pytest.fixture(params=[{}, {"num_patches": 2, "patch_dim": 1}], ids=["steps", "patches"])
def network(request):
    config = replace(CONFIG, **request.param)
    return make_policy(network=config).requires_grad_(False).network


def rows(count=5):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, TINY_SPEC.horizon, 2, generator=generator),
        torch.randint(1000, (count,), generator=generator),
        torch.randn(count, 6, generator=generator),
        torch.randn(count, 5, generator=generator),
        torch.arange(count) % 2 == 1,
    )


def test_it_is_the_usual_transformer(network):
    x_t, timesteps, *condition = rows()
    film = network.time_part(timesteps) + network.condition_part(*condition)
    expected = usual(network, x_t, timesteps, *condition)
    torch.testing.assert_close(network.denoise(x_t, film), expected, rtol=1e-4, atol=1e-5)


def test_time_and_condition_share_no_number_of_the_flat_vector(network):
    _, timesteps, *condition = rows()
    of_time = network.time_part(timesteps) != 0
    of_condition = network.condition_part(*condition) != 0
    assert (of_time ^ of_condition).all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_heads": 5}, "width: expected a multiple of num_heads = 5, got 24"),
        ({"obs_steps": 4}, "observation_dim: expected a multiple of obs_steps = 4, got 6"),
        ({"num_patches": 2, "patch_dim": 3}, r"obs_steps = 2, got 0 besides \(2, 3\) in patches"),
        ({"num_patches": 2}, "patch_dim: expected at least 1, got None"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **sizes)
