"""The U-Net as it starts, and the sizes that do not fit together."""

from dataclasses import replace

import onnx
import pytest
import torch

from models.export import export_step
from models.networks.unet1d import Unet1dConfig
from tests.policies import TINY_SPEC, make_policy

CONFIG = replace(Unet1dConfig.for_spec(TINY_SPEC, 5), widths=(16, 24, 32))


@pytest.mark.parametrize("widths", [(16,), (16, 16), (16, 24, 32), (8, 8, 8, 8)])
def test_every_block_starts_as_its_shortcut(widths):
    """So the conditioning, which acts inside the blocks, has no effect yet."""
    torch.manual_seed(0)
    network = replace(CONFIG, widths=widths).build()
    x_t, film = torch.randn(3, 8, 2), torch.randn(2, 3, network.film_dim)
    output = network.denoise(x_t, film[0])
    assert torch.equal(output, network.denoise(x_t, film[1]))
    assert output.std() > 0.01


@pytest.mark.parametrize(
    ("widths", "seen"),
    [
        ((16,), [3]),
        # action 3 grows from the coarse 1 and 2, which shrank from 1, 2, 3 and 3, 4, 5
        ((16, 16), [1, 2, 3, 4, 5]),
        ((16, 16, 16, 16), range(8)),
    ],
)
def test_far_ends_of_the_chunk_see_each_other_through_the_coarse_levels(widths, seen):
    torch.manual_seed(0)
    network = replace(CONFIG, widths=widths, kernel=1).build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):  # a mean over all actions joins them, too
            module.forward = lambda h: h
    x_t = torch.randn(1, 8, 2, requires_grad=True)
    output = network.denoise(x_t, torch.zeros(1, network.film_dim))
    (gradient,) = torch.autograd.grad(output[0, 3].sum(), x_t)
    assert (gradient[0] != 0).any(-1).nonzero().flatten().tolist() == list(seen)


@pytest.mark.parametrize("cut", [0, 1])
def test_every_level_reaches_the_output_without_the_coarser_ones(cut):
    """By its skip connection: nothing grows back from below the cut."""
    network = make_policy(network=CONFIG).network
    with torch.no_grad():
        for parameter in network.grow[1 - cut].parameters():  # in the order of the way up
            parameter.zero_()
    seen = {}
    level = network.shrink[cut]  # its input is what the skip connection takes
    level.register_forward_hook(lambda _, inputs, __: seen.update(skip=inputs[0]))
    output = network.denoise(torch.randn(2, 8, 2), torch.zeros(2, network.film_dim))
    (gradient,) = torch.autograd.grad(output.square().sum(), seen["skip"])
    assert (gradient != 0).all()


def test_the_graph_has_products_of_all_rows_for_convolutions_and_no_idle_nodes(tmp_path):
    """Nothing else would tell if the exporter came to see them: only their cost."""
    policy = make_policy(network=replace(CONFIG, widths=(8, 8), condition_dim=8))
    export_step(policy, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    graph = model.graph
    operations = [node.op_type for node in graph.node]
    assert not {"Conv", "ConvTranspose", "InstanceNormalization"} & set(operations)
    assert operations.count("MatMul") + operations.count("Gemm") >= 20  # two a block, and four
    # the exporter makes a vector of every index, and each node has a price however little it does
    known = onnx.shape_inference.infer_shapes(model).graph
    values = [*known.input, *known.value_info]
    vectors = {v.name for v in values if len(v.type.tensor_type.shape.dim) == 1}
    reshaped = [(n.input[0], n.output[0]) for n in graph.node if n.op_type == "Reshape"]
    assert {"request_of", "timesteps"} <= vectors
    assert not [names for names in reshaped if vectors.issuperset(names)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"widths": (16, 16, 16, 16, 16)}, "halve the horizon 4 times"),
        ({"widths": (16, 20)}, "multiple of groups = 8"),
        ({"widths": ()}, "at least one level"),
        ({"kernel": 4}, "odd"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **sizes)
