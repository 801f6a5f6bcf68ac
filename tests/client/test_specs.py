"""client/specs.py: specifications that check themselves, observations and actions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.errors import InvalidRequestError
from client.specs import ArraySpec, PolicySpec


def test_a_description_survives_json(spec: PolicySpec) -> None:
    assert PolicySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"task": ""},
        {"observation": {}},
        {"observation": {"state": ArraySpec((2, 1), "float32")}},
        {"action_names": ("tick",)},
        {"action_names": ("tick", 5)},
        {"action_minimum": (0.0, float("nan"))},
        {"action_minimum": (0.0, 2000.0)},
        {"action_maximum": (1.0, 1.0, 1.0)},
        {"horizon": 0},
        {"horizon": 10.0},
        {"exec_steps": 11},
        {"exec_steps": True},
        {"control_period_s": 0.0},
        {"control_period_s": float("inf")},
    ],
)
def test_an_inconsistent_policy_is_refused(spec: PolicySpec, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"PolicySpec\." + next(iter(changes))[:7]):
        replace(spec, **changes)


@pytest.mark.parametrize(
    ("shape", "dtype", "names"),
    [
        ((), "float32", ()),
        ((0,), "float32", ()),
        ((1.5,), "float32", ()),
        ((True,), "uint8", ()),
        ((2,), "float64", ()),
        ((2,), "uint8", ("x",)),
        ((1,), "uint8", (5,)),
    ],
)
def test_an_impossible_array_is_refused(shape: Any, dtype: str, names: Any) -> None:
    with pytest.raises(ValueError, match=r"ArraySpec\."):
        ArraySpec(shape, dtype, names)


@pytest.mark.parametrize(
    ("observation", "says"),
    [
        (None, "mapping"),
        ({}, "missing"),
        ({"state": np.zeros((3, 1), np.float32), "x": np.zeros(1)}, "unknown"),
        ({"state": [[0.0]] * 3}, "numpy array, got list"),
        ({"state": np.zeros((3, 1))}, r"expected dtype float32, got float64.*astype"),
        ({"state": np.zeros((1, 3), np.float32)}, r"expected shape \(3, 1\), got \(1, 3\)"),
        ({"state": np.array([[0], [np.nan], [0]], np.float32)}, r"finite.* got nan .*\[1, 0\]"),
    ],
)
def test_a_bad_observation_is_named(spec: PolicySpec, observation: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        spec.validate_observation(observation)


def test_equal_specifications_have_one_id_and_others_another(spec: PolicySpec) -> None:
    assert PolicySpec.from_dict(spec.to_dict()).spec_id == spec.spec_id
    ids = {
        replace(spec, **{field: changed}).spec_id
        for field, changed in {
            "task": "other",
            "action_names": ("request", "tick"),
            "action_maximum": (1000.0, 999.0),
            "control_period_s": 0.011,
            "observation": {"state": ArraySpec((3, 1), "float32", ("tock",))},
        }.items()
    }
    assert len(ids - {spec.spec_id}) == 5
