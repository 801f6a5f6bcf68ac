"""The network that CONTRIBUTING.md adds by example passes the suite that it is added to."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from models.networks.kinds import KINDS
from tests.contracts import test_networks as suite
from tests.policies import make_policy

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
KIND = "shift_mlp"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """With the network of the guide, added as the guide says."""
    (file,) = re.findall(
        r"```python\n(# models/networks/.*?)```", GUIDE.read_text("utf-8"), re.DOTALL
    )
    path = tmp_path_factory.mktemp("networks") / "shift_mlp.py"
    path.write_text(file, "utf-8")
    spec = importlib.util.spec_from_file_location(KIND, path)
    module = importlib.util.module_from_spec(spec)
    (line,) = re.findall(rf'"{KIND}": (.*),\n', GUIDE.read_text("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, KIND, module)
        spec.loader.exec_module(module)
        names = {"replace": replace, "SPEC": suite.SPEC, "ShiftMlpConfig": module.ShiftMlpConfig}
        patch.setitem(KINDS, KIND, module.ShiftMlpConfig)
        patch.setitem(suite.NETWORKS, KIND, eval(line, names))
        network = suite.NETWORKS[KIND]
        yield make_policy(spec=suite.SPEC, network=network).requires_grad_(False)


def test_it_has_the_protocol(policy):
    suite.test_shapes(policy.network, 4)
    suite.test_the_conditioning_is_separable(policy)
    suite.test_no_weight_and_no_number_of_the_conditioning_is_idle(KIND)


def test_its_graphs_equal_torch(policy, tmp_path):
    graphs = suite.load_graphs(policy, tmp_path)
    suite.test_the_exported_step_equals_torch_in_any_mix_of_rows(policy, graphs, [3.0, 0.0, -1.0])
    suite.test_the_exported_encoder_equals_torch(policy, graphs, 4)


def test_it_trains(policy):
    suite.test_it_trains_on_a_tiny_problem(KIND)


def test_its_checkpoint_is_given_back(policy, tmp_path):
    suite.test_a_checkpoint_names_the_network_and_gives_it_back(policy, tmp_path)
    suite.test_sizes_are_whole_numbers_in_their_range(KIND)
