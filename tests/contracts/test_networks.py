"""One suite for every network: add a line to NETWORKS and all of this runs over it."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from client.specs import ArraySpec
from models import checkpoint
from models.export import STEP_INPUTS, export_graphs, observation_input
from models.guidance import branch_rows
from models.instruction_encoder import INSTRUCTION_DIM
from models.networks.film_mlp import FilmMlpConfig
from models.networks.kinds import KINDS, config_from_json, config_to_json
from models.networks.transformer import TransformerConfig
from models.networks.unet1d import Unet1dConfig
from models.policy import DiffusionConfig
from models.quantize import rounded_blocks
from models.trainer import denoising_loss
from policy_server.backends.bound_graph import load_session
from tests.policies import TINY_SPEC, export_with_int8, make_policy, save_checkpoint

SPEC = replace(
    TINY_SPEC,
    observation={
        "state": ArraySpec((2, 3), "float32"),
        "reading": ArraySpec((2, 1), "float32"),
    },
)
NETWORKS = {
    "film_mlp": replace(FilmMlpConfig.for_spec(SPEC, 5), width=32, num_blocks=2),
    "unet1d": replace(Unet1dConfig.for_spec(SPEC, 5), widths=(16, 24, 32), condition_dim=32),
    "transformer": replace(TransformerConfig.for_spec(SPEC, 5), width=32, num_blocks=2),
    # the last 4 of the 8 numbers observed stand for the patches of a frame
    "transformer of patches": replace(
        TransformerConfig.for_spec(SPEC, 5), width=32, num_blocks=2, num_patches=2, patch_dim=2
    ),
}
"""Small ones of every kind, for `SPEC` and 5 numbers an instruction."""


@pytest.fixture(scope="module", params=NETWORKS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def policy(kind):
    """Every weight matters: none is left at the zero where it may have started."""
    return make_policy(spec=SPEC, network=NETWORKS[kind]).requires_grad_(False)


@pytest.fixture(scope="module")
def network(policy):
    return policy.network


def inputs(rows, seed=0):
    """(x_t, timesteps, observation, instruction, drop); every third instruction is dropped."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, SPEC.horizon, SPEC.action_dim, generator=generator),
        torch.randint(1000, (rows,), generator=generator),
        torch.randn(rows, 8, generator=generator),
        torch.randn(rows, 5, generator=generator),
        torch.arange(rows) % 3 == 2,
    )


def evaluate(network, x_t, timesteps, observation, instruction, drop):
    film = network.time_part(timesteps) + network.condition_part(observation, instruction, drop)
    return network.denoise(x_t, film)


def test_every_kind_that_a_checkpoint_can_hold_is_in_this_suite():
    assert {config.kind for config in NETWORKS.values()} == KINDS.keys()


@pytest.mark.parametrize("rows", [1, 4])
def test_shapes(network, rows):
    x_t, timesteps, *condition = inputs(rows)
    time, part = network.time_part(timesteps), network.condition_part(*condition)
    assert time.shape == part.shape == (rows, network.film_dim)
    output = network.denoise(x_t, time + part)
    assert (output.shape, output.dtype) == (x_t.shape, torch.float32)


def test_a_row_is_the_same_alone_and_in_company(network):
    rows = inputs(6)
    together = evaluate(network, *rows)
    for i in range(6):
        alone = evaluate(network, *(array[i : i + 1] for array in rows))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def changed(rows, name):
    """The same rows, but for one input: another value of it in every row."""
    x_t, timesteps, observation, instruction, drop = (array.clone() for array in rows)
    match name:
        case "x_t":
            x_t[:, -1, 0] += 1
        case "timestep":
            timesteps = (timesteps + 300) % 1000
        case "oldest observation":
            observation[:, 0] += 1
        case "newest observation":
            observation[:, -1] += 1
        case "instruction":
            instruction[:, 0] += 1
        case "drop":
            drop = ~drop
    return x_t, timesteps, observation, instruction, drop


@pytest.mark.parametrize(
    "name", ["x_t", "timestep", "oldest observation", "newest observation", "instruction", "drop"]
)
def test_every_input_acts_on_every_action_of_the_chunk(network, name):
    rows = inputs(6)
    kept = ~rows[-1] if name == "instruction" else slice(None)
    difference = evaluate(network, *rows) - evaluate(network, *changed(rows, name))
    assert (difference[kept].abs().amax(dim=-1) > 1e-4).all()


def test_a_dropped_instruction_is_not_looked_at(network):
    rows = inputs(6)
    dropped = rows[-1]
    before, after = evaluate(network, *rows), evaluate(network, *changed(rows, "instruction"))
    assert torch.equal(before[dropped], after[dropped])


def test_the_conditioning_is_separable(policy):
    """A request that keeps its condition part takes any step from a table of t."""
    network = policy.network
    x_t, timesteps, observation, instruction, drop = inputs(6)
    conditions = network.condition_part(observation, instruction, drop)
    table = network.time_part(torch.arange(1000))
    direct = evaluate(network, x_t, timesteps, observation, instruction, drop)
    separate = network.denoise(x_t, table[timesteps] + conditions)
    torch.testing.assert_close(separate, direct, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def graphs(policy, tmp_path_factory):
    return load_graphs(policy, tmp_path_factory.mktemp("graphs"))


def load_graphs(policy, folder):
    """(guided step, encoder, step in int8), exported and loaded by ONNX Runtime."""
    export_with_int8(policy, folder)
    return [load_session(folder / name, num_threads=1) for name in checkpoint.EXPORTS]


def assert_equal_to_1e_4(found, expected):
    """Relative to the largest number: single entries of a row may be as good as zero."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


MIXES = [[0.0], [1.0], [0.0, 2.0], [3.0, 0.0, -1.0, 0.5, 0.0]]


def step_feed(policy, w):
    """Random inputs of a step for requests with these guidance scales."""
    rng = np.random.default_rng(0)
    rows = branch_rows(np.array(w, np.float32), rng.permutation(len(w)))
    chunk = (len(w), SPEC.horizon, SPEC.action_dim)
    arrays = {
        "x_t": rng.standard_normal(chunk),
        "x0_prev": rng.standard_normal(chunk),
        "timesteps": rng.integers(1000, size=len(w)),
        "conditions": rng.standard_normal((2 * len(w), policy.network.film_dim)),
        **vars(rows),
        "guidance_scale": np.array(w),
        "coefficients": rng.random((len(w), 4)),
        "noise": rng.standard_normal(chunk),
    }
    return {k: a.astype(np.float32) if a.dtype == np.float64 else a for k, a in arrays.items()}


@pytest.mark.parametrize("w", MIXES)
def test_the_exported_step_equals_torch_in_any_mix_of_rows(policy, graphs, w):
    feed = step_feed(policy, w)
    expected = policy.guided_step()(*(torch.from_numpy(feed[name]) for name in STEP_INPUTS))
    for found, tensor in zip(graphs[0].run(None, feed), expected, strict=True):
        assert_equal_to_1e_4(found, tensor.numpy())
    x0 = expected[1]
    assert (x0.abs() < policy.diffusion.clip).float().mean() > 0.2  # it is not all clipped


def test_int8_weights_change_a_step_by_little(policy, graphs):
    feed = step_feed(policy, [0.0] * 5)
    _, exact = graphs[0].run(None, feed)
    _, x0 = graphs[2].run(None, feed)
    error = np.sqrt(np.mean((x0 - exact) ** 2))
    assert 0 < error < 0.05 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_number_that_is_not_finite_is_not_rounded_away(policy, graphs, bad):
    """int8 has no NaN, and a robot would get what is left of the chunk."""
    feed = step_feed(policy, [0.0, 0.0, 2.0])
    before, _ = graphs[2].run(None, feed)
    slot = feed["condition_of"][0]
    for number in range(7, 4000, 397):
        conditions = feed["conditions"].copy()
        conditions[slot, number % policy.network.film_dim] = bad
        spoilt = {**feed, "conditions": conditions}
        exact, after = graphs[0].run(None, spoilt)[0], graphs[2].run(None, spoilt)[0]
        # −inf in the key of a token means only that nobody attends to it
        assert np.isnan(exact[0]).all() or np.isinf(bad)
        np.testing.assert_array_equal(np.isfinite(after[0]), np.isfinite(exact[0]))
        np.testing.assert_array_equal(after[1:], before[1:])


def test_each_product_in_int8_has_its_guard(policy, tmp_path):
    export_with_int8(policy, tmp_path)
    graph = onnx.load(tmp_path / checkpoint.INT8_ONNX).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    products = {"MatMulNBits": 0, "MatMulIntegerToFloat": 0}
    for product in graph.node:
        if product.op_type not in products:
            continue
        products[product.op_type] += 1
        (guarded,) = [node for node in graph.node if product.output[0] in node.input]
        (other,) = set(guarded.input) - {product.output[0]}
        if product.op_type == "MatMulNBits":
            guard, x = made_by[other], product.input[0]
            assert (guarded.op_type, guard.op_type) == ("Add", "MatMul")
            assert guard.input[0] == x
            assert constants[guard.input[1]].shape[1] == 1
        else:
            rounding = made_by[product.input[0]]
            scaling = made_by[rounding.input[0]]
            scale, x = made_by[scaling.input[1]], scaling.input[0]
            assert (guarded.op_type, scaling.op_type, scale.op_type) == ("Mul", "Div", "Add")
            assert other == scale.output[0]
            guard = made_by[scale.input[1]]
            total = made_by[guard.input[0]]
            assert (guard.op_type, total.op_type) == ("Mul", "ReduceSum")
            assert made_by[total.input[0]].input[0] == x
        assert not constants[guard.input[1]].any()
    rows_have_positions = policy.network.config.kind != FilmMlpConfig.kind
    assert (products["MatMulIntegerToFloat"] > 4) == rows_have_positions
    assert sum(products.values()) > 4


def test_small_products_stay_as_they_are(policy, tmp_path):
    export_graphs(policy, tmp_path, int8=True)
    operators = {n.op_type for n in onnx.load(tmp_path / checkpoint.INT8_ONNX).graph.node}
    assert not operators & {"MatMulNBits", "MatMulIntegerToFloat"}


@pytest.mark.parametrize(("outputs", "inputs"), [(3, 64), (2, 70), (5, 1)])
def test_weights_are_rounded_by_half_a_step_of_their_block(outputs, inputs):
    rows = np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32)
    rows[0] = 0
    rounded, scales = rounded_blocks(rows)
    found = (rounded.astype(np.float32) - 128) * scales.reshape(outputs, -1, 1)
    assert rounded.shape[2] == 64
    error = np.abs(found.reshape(outputs, -1)[:, :inputs] - rows)
    assert (error <= 0.5001 * scales.reshape(outputs, -1).repeat(64, axis=1)[:, :inputs]).all()
    assert not found.reshape(outputs, -1)[:, inputs:].any()


@pytest.mark.parametrize("requests", [1, 4])
def test_the_exported_encoder_equals_torch(policy, graphs, requests):
    generator = torch.Generator().manual_seed(0)
    observation = tuple(
        torch.randn(requests, *array.shape, generator=generator)
        for array in SPEC.observation.values()
    )
    instruction = torch.randn(requests, INSTRUCTION_DIM, generator=generator)
    rows = torch.arange(requests).repeat_interleave(2), torch.tensor([False, True] * requests)
    expected = policy.condition_encoder()(observation, instruction, *rows)
    names = [*map(observation_input, SPEC.observation), "instruction", "request_of", "drop"]
    tensors = [*observation, instruction, *rows]
    feed = {name: array.numpy() for name, array in zip(names, tensors, strict=True)}
    (found,) = graphs[1].run(None, feed)
    assert_equal_to_1e_4(found, expected.numpy())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(network, bad):
    x_t, timesteps, *condition = inputs(3)
    film = network.time_part(timesteps) + network.condition_part(*condition)
    film[0] = bad
    output = network.denoise(x_t, film)
    assert not output[0].isfinite().any()
    assert output[1:].isfinite().all()


def test_no_weight_and_no_number_of_the_conditioning_is_idle(kind):
    network = make_policy(spec=SPEC, network=NETWORKS[kind]).network
    x_t, timesteps, *condition = inputs(12)
    film = network.time_part(timesteps) + network.condition_part(*condition)
    film.retain_grad()
    network.denoise(x_t, film).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if not p.grad.abs().max() > 0]
    assert (film.grad.abs().amax(0) > 0).all()


def test_it_trains_on_a_tiny_problem(kind):
    """The chunk is a sine whose phase is the instruction and whose size the observation."""
    torch.manual_seed(0)
    network = NETWORKS[kind].build().train()
    generator = torch.Generator().manual_seed(1)
    diffusion = DiffusionConfig(prediction_type="sample")
    time = torch.linspace(0, 3, SPEC.horizon)[None, :, None]

    def loss(rows):
        which = torch.randint(5, (rows,), generator=generator)
        observation = torch.rand(rows, 8, generator=generator)
        size, phase = observation[:, -1, None, None], which[:, None, None] + torch.arange(2) * 1.5
        condition = network.condition_part(
            observation, torch.eye(5)[which], torch.zeros(rows, dtype=torch.bool)
        )
        x0 = size * torch.sin(time + phase)
        return denoising_loss(network, condition, x0, diffusion, draws=1, generator=generator)

    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss(64).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    # all come to 0.002 or less; with every instruction dropped they end above 0.06
    assert loss(1000).item() < 0.1 / 6


def test_a_checkpoint_names_the_network_and_gives_it_back(policy, tmp_path):
    save_checkpoint(tmp_path, policy)
    manifest, loaded = checkpoint.load(tmp_path)
    assert manifest.network == policy.network.config
    loaded.requires_grad_(False)  # for which products are rounded otherwise
    rows = inputs(3)
    assert torch.equal(evaluate(loaded.network, *rows), evaluate(policy.network, *rows))


def test_sizes_are_whole_numbers_in_their_range(kind):
    fields = config_to_json(NETWORKS[kind])
    for name in fields.keys() - {"kind"}:
        for bad in (0, -1, 2.5):
            value = [bad] if isinstance(fields[name], tuple) else bad
            with pytest.raises(ValueError, match=name):
                config_from_json({**fields, name: value})


def test_other_shapes_than_the_specification_are_refused(kind):
    with pytest.raises(ValueError, match="for_spec"):
        make_policy(spec=TINY_SPEC, network=NETWORKS[kind])
