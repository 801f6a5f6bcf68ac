"""Checkpoints: what is saved is what is loaded, and nothing else gets in."""

import json

import numpy as np
import pytest
import torch

from models import checkpoint
from models.checkpoint import CheckpointError, Manifest
from tests.policies import make_policy, save_checkpoint


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path, make_policy(), success_by_steps=({"num_steps": 1},))
    return tmp_path


def test_round_trip(folder):
    manifest, policy = checkpoint.load(folder)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.spec == make_policy().spec
    for name, value in make_policy().state_dict().items():
        assert torch.equal(policy.state_dict()[name], value)
    assert not policy.training


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_file_is_named(folder, damage):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if damage == "altered" else content[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.load(folder)


def test_a_file_outside_the_folder_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../model.safetensors"] = "0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not found"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 2, "format: expected 1, got 2"),
        ("min_steps", 9, "min_steps <= max_useful_steps"),
        ("max_useful_steps", 1001, "max_useful_steps <= 1000"),
        ("defaults", {"grid": "leading"}, "defaults.grid"),
        ("defaults", {"sampler": "ddpm"}, "defaults.sampler: expected ddim or dpmpp_2m"),
        ("defaults", {"sampler": "dpmpp_2m", "eta": 0.5, "grid": "logsnr"}, "defaults.eta"),
        ("defaults", {"sampler": "dpmpp_2m", "grid": "linspace"}, "choose logsnr or trailing"),
        ("defaults", {"eta": 1.5}, "defaults.eta"),
        ("defaults", {"guidance_scale": float("nan")}, "defaults.guidance_scale"),
        ("network", {"width": 3}, "network|argument"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(folder, field, value, message):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[field] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


@pytest.fixture
def exported(folder):
    """With files in place of the exports, which are not looked into here."""
    for name in checkpoint.EXPORTS:
        (folder / name).write_bytes(b"graph")
    checkpoint.write_manifest(folder, checkpoint.read_manifest(folder))
    return folder


def test_exports_are_checked_like_weights(exported):
    assert {"model.onnx", "encoder.onnx"} < checkpoint.load(exported)[0].files.keys()
    (exported / "encoder.onnx").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"encoder\.onnx: altered"):
        checkpoint.load(exported)


@pytest.mark.parametrize("name", ["model.onnx", "encoder.onnx"])
def test_one_export_without_the_other_is_refused(exported, name):
    manifest = json.loads((exported / "manifest.json").read_text())
    del manifest["files"][name]
    (exported / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="python -m models export"):
        checkpoint.load(exported)


def test_one_export_alone_is_never_listed(exported):
    (exported / "encoder.onnx").unlink()
    manifest = checkpoint.write_manifest(exported, checkpoint.read_manifest(exported))
    assert list(manifest.files) == ["model.safetensors"]


def test_discarded_exports_are_gone_and_the_weights_are_still_checked(exported):
    (exported / "encoder.onnx").unlink()  # whatever state they were in
    weights = exported / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good + b"x")
    checkpoint.discard_exports(exported)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: altered"):
        checkpoint.load(exported)
    weights.write_bytes(good)
    assert list(checkpoint.load(exported)[0].files) == ["model.safetensors"]
    assert not (exported / "model.onnx").exists()


def test_new_weights_leave_no_old_exports(exported):
    save_checkpoint(exported, make_policy(seed=1))
    assert not any((exported / name).exists() for name in checkpoint.EXPORTS)


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"manifest\.json: not found"):
        checkpoint.load(tmp_path)


def test_actions_keep_the_limits():
    policy = make_policy()
    policy.action_normalizer.fit_range(torch.tensor([[-1.0, -1.0], [1.0, 1.0 + 1e-6]]))
    actions = policy.to_actions(torch.ones(8, 2)).numpy()
    assert np.all(np.abs(actions) <= 1.0)
