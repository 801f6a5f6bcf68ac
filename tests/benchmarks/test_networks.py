"""The comparison of networks, on small policies of two kinds."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import NetworksConfig, achieved, main
from models import checkpoint
from models.networks.unet1d import Unet1dConfig
from tests.policies import CAMERA_SPEC, TINY_VISION, make_policy, save_checkpoint

BY_STEPS = tuple(
    {
        "sampler": "ddim",
        "grid": "trailing",
        "guidance_scale": w,
        "num_steps": count,
        "nfe": count,
        "success_rate": 0.0,
        "score": count / 100 + w,
    }
    for w in (0.0, 9.0)  # the default of this policy, and another one
    for count in (2, 3, 10)
)


@pytest.fixture(scope="module")
def seeing():
    """A policy with cameras, and with another network."""
    unet = Unet1dConfig.for_spec(CAMERA_SPEC, 5, TINY_VISION)
    unet = replace(unet, widths=(8, 16), groups=4)
    return make_policy(spec=CAMERA_SPEC, vision=TINY_VISION, network=unet)


@pytest.fixture(scope="module")
def made(tmp_path_factory, seeing):
    """Folder of the results, and of two checkpoints: "mlp", which was tuned, and "unet"."""
    folder = tmp_path_factory.mktemp("networks")
    save_checkpoint(folder / "mlp", make_policy(), success_by_steps=BY_STEPS)
    save_checkpoint(folder / "unet", seeing)
    both = (folder / "mlp", folder / "unet")
    main(NetworksConfig(checkpoints=both, repeats=3, requests=4, out=folder))
    return folder


def rows_of(folder):
    return json.loads((folder / "networks.json").read_text())["rows"]


def test_costs_are_measured_and_gains_are_the_manifest_s(made):
    rows = rows_of(made)
    assert (made / "networks.png").stat().st_size > 1000
    assert [(r["network"], r["backend"], r["guided"]) for r in rows] == [
        (network, backend, guided)
        for network in ("film_mlp", "unet1d")
        for backend in ("onnx", "torch")
        for guided in (False, True)
    ]
    for row in rows:
        folder = made / ("unet" if row["network"] == "unet1d" else "mlp")
        manifest = checkpoint.read_manifest(folder)
        assert (row["checkpoint"], row["model_id"]) == (str(folder), manifest.model_id)
        assert row["max_useful_steps"] == manifest.max_useful_steps
        assert 0 < row["step_p50_s"] < row["request_p50_s"] < 10 * 50 * row["step_p50_s"]
        assert 0 < row["encode_p50_s"] < row["request_p50_s"]
        assert 0 < row["step_together_p50_s"] < 20 * row["step_p50_s"]


def test_looking_is_counted_apart_from_the_network_once_a_request(made, seeing):
    row = rows_of(made)[-1]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for name, encoder in seeing.camera_encoders.items():
            encoder(torch.zeros(1, *CAMERA_SPEC.observation[name].shape, dtype=torch.uint8))
    assert row["camera_operations"] == counter.get_total_flops() > 0
    assert row["camera_parameters"] == sum(p.numel() for p in seeing.camera_encoders.parameters())


def test_the_page_has_a_line_for_each_checkpoint_with_what_is_known_of_it(made):
    lines = (made / "networks.md").read_text().splitlines()
    header, rule, tuned, other = ([c.strip() for c in line.split("|")[1:-1]] for line in lines)
    assert len(header) == len(rule) == len(tuned) == len(other)
    steps = ("1 step", "2 steps", "5 steps", "10 steps")
    mlp, unet = (dict(zip(header, line, strict=True)) for line in (tuned, other))
    assert [mlp[name] for name in steps] == ["–", "0.02", "–", "0.10"]
    assert [unet[name] for name in steps] == ["–"] * 4
    assert mlp["MFLOP of cameras"] == "–"
    assert mlp["torch: encode (ms)"] == f"{1e3 * rows_of(made)[3]['encode_p50_s']:.2f}"


@pytest.mark.parametrize(
    ("row", "value"), [({"success_rate": 0.5}, 0.5), ({"success_rate": 0.1, "score": 0.9}, 0.9)]
)
def test_a_score_counts_where_there_is_one(row, value):
    assert achieved(row) == value


@pytest.mark.parametrize("field", ["num_steps", "requests", "num_threads", "repeats"])
def test_what_cannot_be_is_refused(field):
    with pytest.raises(ValueError, match=field):
        NetworksConfig(**{field: 0})
