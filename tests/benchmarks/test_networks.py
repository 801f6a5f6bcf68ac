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
        assert 0 < row["encode_p50_s"] < row["request_p50_s"]
        assert 0 < row["step_together_p50_s"] < 4 * row["step_p50_s"]


def test_the_page_has_a_line_for_each_policy_with_what_is_known_of_it(tmp_path):
    """Two of one robot, one that sees; the one that was tuned says what its steps achieve."""
    by_steps = [
        {**how, "num_steps": count, "nfe": count, "success_rate": 0.0, "score": count / 100}
        for how in (
            {"sampler": "ddim", "grid": "trailing", "guidance_scale": 0.0},
            {"sampler": "ddim", "grid": "trailing", "guidance_scale": 9.0},
        )
        for count in (2, 3, 10)
    ]
    folders = [tmp_path / name for name in ("tuned", "seeing")]
    save_checkpoint(folders[0], make_policy(), model_id="tuned", success_by_steps=tuple(by_steps))
    seeing = make_policy(spec=CAMERA_SPEC, vision=TINY_VISION)
    save_checkpoint(folders[1], seeing, model_id="seeing")
    main(NetworksConfig(checkpoints=tuple(folders), repeats=1, requests=2, out=tmp_path))
    page = (tmp_path / "networks.md").read_text()
    header, _, tuned, seen = ([c.strip() for c in x.split("|")[1:-1]] for x in page.splitlines())
    assert len(header) == len(tuned) == len(seen)
    cells = dict(zip(header, tuned, strict=True))
    assert [cells[n] for n in ("1 step", "2 steps", "5 steps", "10 steps")] == [
        "–",
        "0.02",
        "–",
        "0.10",
    ]
    assert cells["MFLOP of cameras"] == "–"
    rows = json.loads((tmp_path / "networks.json").read_text())["rows"]
    (first, *_) = (row for row in rows if row["model_id"] == "seeing")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for name, encoder in seeing.camera_encoders.items():
            encoder(torch.zeros(1, *CAMERA_SPEC.observation[name].shape, dtype=torch.uint8))
    assert first["camera_operations"] == counter.get_total_flops() > 0
    assert first["camera_parameters"] == sum(p.numel() for p in seeing.camera_encoders.parameters())


@pytest.mark.parametrize(
    ("row", "value"), [({"success_rate": 0.5}, 0.5), ({"success_rate": 0.1, "score": 0.9}, 0.9)]
)
def test_a_score_counts_where_there_is_one(row, value):
    assert achieved(row) == value


@pytest.mark.parametrize("field", ["num_steps", "requests", "num_threads", "repeats"])
def test_what_cannot_be_is_refused(field):
    with pytest.raises(ValueError, match=field):
        NetworksConfig(**{field: 0})
