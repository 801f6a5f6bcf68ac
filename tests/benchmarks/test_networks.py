"""The comparison of networks, on small policies of two kinds."""

import json
from dataclasses import replace

import pytest

from benchmarks.networks import NetworksConfig, achieved, main
from models import checkpoint
from models.networks.unet1d import Unet1dConfig
from tests.policies import make_policy, save_checkpoint


def test_costs_are_measured_and_gains_are_the_manifest_s(tmp_path):
    folders = (tmp_path / "mlp", tmp_path / "unet")
    save_checkpoint(folders[0], make_policy())
    spec = make_policy().spec
    unet = replace(Unet1dConfig.for_spec(spec, 5), widths=(8, 16), groups=4)
    save_checkpoint(folders[1], make_policy(network=unet))
    config = NetworksConfig(checkpoints=folders, repeats=3, requests=4, out=tmp_path / "out")
    main(config)
    rows = json.loads((tmp_path / "out/networks.json").read_text())["rows"]
    assert (tmp_path / "out/networks.png").stat().st_size > 1000
    assert [(r["network"], r["backend"], r["guided"]) for r in rows] == [
        (network, backend, guided)
        for network in ("film_mlp", "unet1d")
        for backend in ("onnx", "torch")
        for guided in (False, True)
    ]
    for row in rows:
        manifest = checkpoint.read_manifest(folders[row["network"] == "unet1d"])
        assert row["model_id"] == manifest.model_id
        assert row["max_useful_steps"] == manifest.max_useful_steps
        assert 0 < row["step_p50_s"] < row["request_p50_s"] < 10 * 11 * row["step_p50_s"]
        assert 0 < row["step_together_p50_s"] < 4 * row["step_p50_s"]


@pytest.mark.parametrize(
    ("row", "value"), [({"success_rate": 0.5}, 0.5), ({"success_rate": 0.1, "score": 0.9}, 0.9)]
)
def test_a_score_counts_where_there_is_one(row, value):
    assert achieved(row) == value


@pytest.mark.parametrize("field", ["num_steps", "requests", "num_threads", "repeats"])
def test_what_cannot_be_is_refused(field):
    with pytest.raises(ValueError, match=field):
        NetworksConfig(**{field: 0})
