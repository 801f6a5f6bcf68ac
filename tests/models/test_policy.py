"""What a policy does around its network."""

from dataclasses import replace

import torch

from client.specs import ArraySpec
from tests.policies import TINY_SPEC, make_policy


def test_observations_are_flattened_step_by_step_oldest_first():
    arrays = {
        "state": ArraySpec((2, 3), "float32"),
        "grid": ArraySpec((2, 2, 2), "float32"),
        "switch": ArraySpec((2,), "float32"),
    }
    policy = make_policy(
        spec=replace(TINY_SPEC, observation=arrays)
    )  # its normalisers are unfitted
    oldest = [1.0, 2.0, 3.0], [[4.0, 5.0], [6.0, 7.0]], 8.0
    newest = [11.0, 12.0, 13.0], [[14.0, 15.0], [16.0, 17.0]], 18.0
    observation = {
        name: torch.tensor([[old, new]])
        for name, old, new in zip(arrays, oldest, newest, strict=True)
    }
    expected = torch.tensor([[*range(1, 9), *range(11, 19)]], dtype=torch.float32)
    assert torch.equal(policy.flatten_observation(observation), expected)
