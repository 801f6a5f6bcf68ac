"""The camera encoder: key points, crops, cost, and what surrounds it in a policy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from client.specs import ArraySpec
from models import checkpoint
from models.export import export_encoder
from models.instruction_encoder import INSTRUCTION_DIM
from models.networks.config import observation_dim
from models.networks.film_mlp import FilmMlpConfig
from models.networks.kinds import KINDS, config_to_json
from models.networks.transformer import TransformerConfig
from models.vision import CameraEncoder, VisionConfig, random_crops
from tests.policies import CAMERA_SPEC, TINY_SPEC, TINY_VISION, make_policy, save_checkpoint

MOST_MFLOP = 30


def frames(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=generator)


def camera_policy():
    return make_policy(spec=CAMERA_SPEC, vision=TINY_VISION)


def observation(rows, seed=0):
    return {
        "left": frames(rows, 2, 8, 10, seed=seed),
        "state": torch.randn(rows, 2, 3, generator=torch.Generator().manual_seed(seed)),
        "right": frames(rows, 2, 6, 6, seed=seed + 1),
    }


@pytest.mark.parametrize("config", [config.vision for config in KINDS.values()], ids=KINDS)
def test_a_frame_of_push_t_costs_no_more_than_is_allowed(config):
    encoder = CameraEncoder(config).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder(frames(1, 1, 96, 96))
    assert MOST_MFLOP / 2 < counter.get_total_flops() / 1e6 <= MOST_MFLOP


def test_key_points_are_expected_positions():
    torch.manual_seed(0)
    encoder = CameraEncoder(TINY_VISION).double()
    maps = torch.randn(3, 16, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        found = encoder.key_points(maps)
        scores = encoder.scores(maps)
    for frame in range(3):
        for point in range(TINY_VISION.key_points):
            weights = np.exp(scores[frame, point].numpy())
            weights /= weights.sum()
            x = weights[:, 1].sum() - weights[:, 0].sum()
            y = weights[1].sum() - weights[0].sum()
            np.testing.assert_allclose(found[frame, point], [x, y], atol=1e-12)


def test_a_key_point_follows_what_it_sees():
    """A bright dot, sought by hand-made weights: x to the right, y down, in −1..1."""
    encoder = CameraEncoder(VisionConfig(crop=(40, 40), channels=(8,), key_points=1, features=2))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.layers[0].weight[0, :, 2, 2] = 1.0
        encoder.layers[1].weight.fill_(1.0)
        encoder.scores.weight[0, 0] = 10.0
        encoder.read_out.weight.copy_(torch.eye(2))
        for row, column in ((20, 20), (4, 30), (34, 2)):
            image = torch.zeros(1, 1, 40, 40, 3, dtype=torch.uint8)
            image[0, 0, row, column] = 255
            found = encoder(image)[0, 0, 0]
            expected = torch.tensor([column, row]) / 2 / 19 * 2 - 1  # 20 places after the stride
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_patch_is_a_product_of_its_part_of_the_last_feature_map():
    torch.manual_seed(0)
    config = VisionConfig(crop=(22, 29), channels=(8, 8), key_points=2, features=3, patch=2)
    assert (config.map_size, config.num_patches) == ((6, 8), 12)
    encoder = CameraEncoder(config)
    images = frames(2, 2, 22, 29)
    with torch.no_grad():
        seen = encoder(images)
        maps = encoder.layers((images[1, 0].permute(2, 0, 1)[None] / 127.5 - 1).float())[0]
        expected = [
            encoder.patches.weight.flatten(1) @ maps[:, r : r + 2, c : c + 2].flatten()
            + encoder.patches.bias
            for r in range(0, 6, 2)
            for c in range(0, 8, 2)
        ]
    assert seen.shape == (2, 2, 13, 3)
    torch.testing.assert_close(seen[1, 0, 1:], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_patches_come_after_all_steps_of_the_flattened_observation():
    vision = replace(TINY_VISION, patch=1)
    patches = vision.num_patches
    assert patches == 4
    policy = make_policy(spec=CAMERA_SPEC, vision=vision)
    seen = observation(2)
    with torch.inference_mode():
        flat = policy.flatten_observation(seen)
        left, right = (policy.camera_encoders[name](seen[name]) for name in ("left", "right"))
        assert flat.shape[1] == observation_dim(CAMERA_SPEC, vision)
        assert torch.equal(flat[:, 9:12], left[:, 1, 0])
        assert torch.equal(flat[:, 18:], torch.cat([left[:, :, 1:], right[:, :, 1:]], 1).flatten(1))


def test_the_middle_of_a_frame_is_what_is_seen():
    encoder = CameraEncoder(TINY_VISION).eval()
    images = frames(2, 2, 8, 10)
    with torch.inference_mode():
        whole = encoder(images)
        torch.testing.assert_close(encoder(images[:, :, 1:6, 2:8]), whole)
        border = images.clone()
        border[:, :, [0, 6, 7]] = 0
        border[:, :, :, [0, 1, 8, 9]] = 0
        torch.testing.assert_close(encoder(border), whole)
        border[:, :, 1, 2] ^= 255
        assert not torch.allclose(encoder(border), whole)


def test_random_crops_are_parts_of_the_frame_wherever_they_fit():
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    one = torch.stack([rows, columns, rows], dim=-1).to(torch.uint8)
    images = one.expand(500, 2, 8, 10, 3)
    crops = random_crops(images, (5, 6), np.random.default_rng(0))
    assert crops.shape == (500, 2, 5, 6, 3)
    assert torch.equal(crops[:, 0], crops[:, 1])
    tops, lefts = crops[:, 0, 0, 0, 0], crops[:, 0, 0, 0, 1]
    for crop, top, left in zip(crops, tops.tolist(), lefts.tolist(), strict=True):
        assert torch.equal(crop[0], one[top : top + 5, left : left + 6])
    assert set(tops.tolist()) == set(range(4))
    assert set(lefts.tolist()) == set(range(5))


def test_every_step_of_the_flattened_observation_has_its_own_frames_in_the_order_of_the_spec():
    policy = camera_policy()
    seen = observation(4)
    assert observation_dim(CAMERA_SPEC, TINY_VISION) == 2 * (3 + 3 + 3)
    with torch.inference_mode():
        flat = policy.flatten_observation(seen).unflatten(1, (2, 9))
        for step in range(2):
            for part, name in enumerate(("left", "state", "right")):
                alone = seen[name][:, step : step + 1]
                if name != "state":
                    alone = policy.camera_encoders[name](alone)[:, :, 0]
                found = flat[:, step, 3 * part : 3 * part + 3]
                torch.testing.assert_close(found, alone[:, 0], atol=1e-5, rtol=1e-5)


def test_what_is_seen_reaches_the_condition_and_gradients_reach_the_encoder():
    policy = camera_policy()
    seen = observation(2)
    said, drop = torch.randn(2, INSTRUCTION_DIM), torch.tensor([False, True])
    part = policy.condition_part(seen, said, drop)
    assert not torch.allclose(part, policy.condition_part(observation(2, 5), said, drop))
    part.square().sum().backward()
    for name, parameter in policy.camera_encoders.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", [FilmMlpConfig, TransformerConfig])
def test_the_export_equals_torch_for_any_number_of_requests(tmp_path, kind):
    ort = pytest.importorskip("onnxruntime")
    spec = replace(
        TINY_SPEC,
        obs_steps=1,
        observation={
            "camera": ArraySpec((1, 96, 96, 3), "uint8"),
            "state": ArraySpec((1, 2), "float32"),
        },
    )
    network = replace(kind.for_spec(spec, 5, kind.vision), num_blocks=2)
    policy = make_policy(spec=spec, vision=kind.vision, network=network)
    export_encoder(policy, tmp_path / "encoder.onnx")
    session = ort.InferenceSession(str(tmp_path / "encoder.onnx"))
    names = [each.name for each in session.get_inputs()]
    assert session.get_inputs()[0].type == "tensor(uint8)"
    for rows in (1, 2, 7):
        seen = (frames(rows, 1, 96, 96, seed=rows), torch.randn(rows, 1, 2))
        said = torch.randn(rows, INSTRUCTION_DIM)
        request_of = torch.arange(rows).repeat_interleave(2)
        drop = torch.tensor([False, True]).repeat(rows)
        with torch.inference_mode():
            expected = policy.condition_encoder()(seen, said, request_of, drop).numpy()
        given = [array.numpy() for array in (*seen, said, request_of, drop)]
        found = session.run(None, dict(zip(names, given, strict=True)))[0]
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_checkpoint_keeps_it(tmp_path):
    policy = camera_policy()
    save_checkpoint(tmp_path, policy)
    manifest, loaded = checkpoint.load(tmp_path)
    assert manifest.vision == TINY_VISION
    seen = observation(3)
    with torch.inference_mode():
        assert torch.equal(loaded.flatten_observation(seen), policy.flatten_observation(seen))


def test_what_there_is_none_of_is_not_mentioned_as_in_manifests_from_before_there_was_any(tmp_path):
    save_checkpoint(tmp_path, camera_policy())
    assert "patch" not in json.loads((tmp_path / checkpoint.MANIFEST).read_text())["vision"]
    assert "num_patches" not in config_to_json(TransformerConfig.for_spec(TINY_SPEC, 5))
    shown = replace(TINY_VISION, patch=2)
    save_checkpoint(tmp_path, make_policy(spec=CAMERA_SPEC, vision=shown))
    assert checkpoint.load(tmp_path)[0].vision == shown


def test_a_manifest_without_cameras_does_not_mention_it(tmp_path):
    save_checkpoint(tmp_path, make_policy())
    assert "vision" not in json.loads((tmp_path / checkpoint.MANIFEST).read_text())
    assert not [name for name in make_policy().state_dict() if "camera" in name]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": (12,)}, "channels: expected multiples of 8"),
        ({"channels": ()}, "channels: expected multiples of 8"),
        ({"crop": (84,)}, r"crop: expected \(rows, columns\)"),
        ({"features": 0}, "at least 1"),
        ({"key_points": 1.5}, "whole numbers"),
        ({"patch": 0}, "at least 1"),
        ({"patch": 22}, "patch: expected at most 21, got 22"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**fields)


@pytest.mark.parametrize(
    ("spec", "vision", "message"),
    [
        (CAMERA_SPEC, None, "expected sizes for the cameras left, right"),
        (TINY_SPEC, TINY_VISION, "expected none without a camera"),
        (CAMERA_SPEC, replace(TINY_VISION, crop=(6, 7)), r"at most the \(6, 6\) of camera 'right'"),
    ],
)
def test_what_does_not_fit_the_cameras_is_refused(spec, vision, message):
    with pytest.raises(ValueError, match=message):
        make_policy(spec=spec, vision=vision)
