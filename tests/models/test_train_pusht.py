"""Push-T training: windows from real replay buffers, resuming, the command."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from client.sims.pusht.spec import PUSHT_IMAGE_SPEC, PUSHT_SPEC, TASKS
from client.sims.pusht_image.pictures import Painter
from models import __main__ as command_line
from models import checkpoint, train, train_pusht
from models.networks.film_mlp import FilmMlpConfig
from models.policy import DiffusionConfig, DiffusionPolicy
from models.train import Batches
from models.train_pusht import TrainPushtConfig, parse_demos
from models.vision import VisionConfig
from tests.models.interruptions import train_with_a_break
from tests.models.replay_buffers import LENGTHS, make_arrays, write, write_both

PHRASINGS = {
    "middle": ["push the T to the middle", "centre the block"],
    "lower_right": ["push the T to the lower right", "the block belongs in the corner"],
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(train_pusht.pusht_phrasings, "known", lambda: PHRASINGS)
    return TrainPushtConfig(
        demos=write_both(tmp_path / "demos"),
        out=tmp_path / "whole",
        num_updates=6,
        batch_size=64,
        sizes=("widths=8,16",),
    )


def test_windows_hold_the_newest_states_and_the_actions_from_there_on(config):
    """In these buffers the finger is sent to where it is, (step, 2·step): both can be told."""
    network = FilmMlpConfig.for_spec(PUSHT_SPEC, instruction_dim=1)
    policy = DiffusionPolicy(PUSHT_SPEC, network, DiffusionConfig())
    observation, _, chunk = Batches(config.task(), policy, config).draw(0)
    actions = policy.to_actions(chunk).numpy()
    ends = np.cumsum(LENGTHS)
    starts = ends - LENGTHS
    for window, chunk_actions in zip(observation["state"].numpy(), actions, strict=True):
        now = int(window[1, 0])
        episode = int(np.searchsorted(ends, now, side="right"))
        assert window[0, 0] == max(now - 1, starts[episode])
        expected = np.minimum(now + np.arange(16), ends[episode] - 1)
        assert chunk_actions[:, 0] == pytest.approx(expected, abs=1e-3)
        assert chunk_actions[:, 1] == pytest.approx(2 * expected, abs=1e-3)


@pytest.fixture
def image_config(config):
    return dataclasses.replace(config, observation="image", batch_size=8, num_updates=2)


def test_a_picture_is_of_the_state_that_the_window_ends_with(image_config):
    task = image_config.task()
    network = FilmMlpConfig.for_spec(PUSHT_IMAGE_SPEC, 1, VisionConfig())
    policy = DiffusionPolicy(PUSHT_IMAGE_SPEC, network, DiffusionConfig(), VisionConfig())
    batches = Batches(task, policy, image_config)
    observation, _, chunk = batches.draw(0)
    again, other = batches.draw(0)[0], batches.draw(1)[0]
    assert torch.equal(observation["camera"], again["camera"])
    assert observation["camera"].shape == other["camera"].shape == (8, 1, 84, 84, 3)
    assert not torch.equal(observation["camera"], other["camera"])
    painter = Painter()
    actions = policy.to_actions(chunk).numpy()
    places = set()
    for crop, finger, chunk_actions in zip(
        observation["camera"][:, 0].numpy(), observation["finger"][:, 0], actions, strict=True
    ):
        assert chunk_actions[0] == pytest.approx(finger.numpy(), abs=1e-3)
        both = [
            painter.paint(state)
            for state in task.demos.state
            if np.array_equal(state[:2], finger.numpy())
        ]
        found = [
            (top, left)
            for whole in both
            for top in range(13)
            for left in range(13)
            if np.array_equal(whole[top : top + 84, left : left + 84], crop)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 1


def test_a_policy_that_sees_pictures_is_trained_and_says_so(image_config):
    manifest = train.train(image_config)
    assert manifest.spec == PUSHT_IMAGE_SPEC
    assert manifest.vision == VisionConfig()
    assert manifest.model_id.startswith("pusht_image-unet1d")
    _, policy = checkpoint.load(image_config.out)
    fresh = train.train(dataclasses.replace(image_config, out=image_config.out.parent / "fresh"))
    assert fresh.files == manifest.files  # the same weights once more
    torch.manual_seed(image_config.seed)
    untrained = DiffusionPolicy(
        manifest.spec, policy.network.config, policy.diffusion, manifest.vision
    )
    for name, parameter in policy.camera_encoders.named_parameters():
        assert not torch.equal(parameter, untrained.camera_encoders.get_parameter(name)), name
    with pytest.raises(ValueError, match=r"another configuration.*vision"):
        train.train(dataclasses.replace(image_config, observation="state"))


def test_normalised_actions_fill_the_clipped_range(config):
    network = FilmMlpConfig.for_spec(PUSHT_SPEC, instruction_dim=1)
    policy = DiffusionPolicy(PUSHT_SPEC, network, DiffusionConfig())
    Batches(config.task(), policy, config)
    corners = policy.action_normalizer(torch.tensor([[0.0, 0.0], [42.0, 84.0]]))
    torch.testing.assert_close(corners, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def test_an_interrupted_and_resumed_run_ends_with_the_same_weights(config, tmp_path, monkeypatch):
    train.train(config)
    parts = dataclasses.replace(config, out=tmp_path / "parts", save_every=2)

    train_with_a_break(parts, monkeypatch)
    whole, resumed = (checkpoint.load(c.out)[1].state_dict() for c in (config, parts))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_run_is_that_of_its_demonstrations_wherever_they_lie(config, tmp_path):
    train.train(config)
    again = dataclasses.replace(config, demos=write_both(tmp_path / "again"))
    assert train.train(again).training["demos"] == {goal: f"{goal}.zarr.zip" for goal in TASKS}
    arrays = make_arrays("middle", seed=7)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "middle.zarr.zip", arrays)
    other = (f"middle={tmp_path}/other/middle.zarr.zip", again.demos[1])
    with pytest.raises(ValueError, match=r"another configuration.*demos_sha256"):
        train.train(dataclasses.replace(config, demos=other))


@pytest.mark.parametrize(
    ("network", "label"),
    [
        ([], "unet1d"),
        (["--sizes", "widths=8,16"], "unet1d-widths=8,16"),
        (["--network", "film_mlp", "--sizes", "width=32", "num_blocks=1"], "32x1"),
    ],
)
def test_the_command_trains_a_checkpoint_that_says_what_it_is(
    config, monkeypatch, tmp_path, network, label
):
    out = tmp_path / "made"
    rest = ["--num-updates", "2", "--batch-size", "8", "--out", str(out), *network]
    monkeypatch.setattr(sys, "argv", ["models", "train-pusht", "--demos", *config.demos, *rest])
    command_line.main()
    manifest, policy = checkpoint.load(out)
    assert manifest.model_id == f"pusht-{label}-seed0"
    assert manifest.spec == PUSHT_SPEC
    assert manifest.training["demos"] == {goal: f"{goal}.zarr.zip" for goal in TASKS}
    assert manifest.training["episodes"] == 2 * len(LENGTHS)
    assert policy.chunk_shape == (16, 2)
    assert "--demos" in manifest.command
    command_line.main()  # finished: the same command leaves it alone


def test_another_network_in_the_same_folder_is_refused(config):
    train.train(config)
    train.train(dataclasses.replace(config, sizes=("groups=8", "widths=8,16")))  # it is the same
    with pytest.raises(ValueError, match=r"another configuration.*network.*widths"):
        train.train(dataclasses.replace(config, sizes=("widths=16,16",)))


def test_swapped_goals_are_an_error_of_one_line(config, monkeypatch, tmp_path):
    paths = [word.split("=")[1] for word in config.demos]
    words = [f"{goal}={path}" for goal, path in zip(TASKS, reversed(paths), strict=True)]
    monkeypatch.setattr(
        sys, "argv", ["models", "train-pusht", "--demos", *words, "--out", str(tmp_path / "x")]
    )
    with pytest.raises(SystemExit, match=r"error: .*these look like"):
        command_line.main()


def test_a_path_may_hold_what_separates_it_from_its_goal():
    paths = parse_demos(["lower_right=b=1.zip", "middle=a.zip"])
    assert list(paths.items()) == [("middle", Path("a.zip")), ("lower_right", Path("b=1.zip"))]
    assert tuple(paths) == TASKS


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a.zip", "b.zip"],
        ["middle=a.zip"],
        ["middle=a.zip", "middle=b.zip"],
        ["middle=a.zip", "lower_right="],
        ["middle=a.zip", "upper_left=b.zip"],
        ["middle=a.zip", "lower_right=b.zip", "upper_left=c.zip"],
    ],
)
def test_every_goal_needs_one_path(words):
    with pytest.raises(ValueError, match="expected middle=PATH lower_right=PATH, got"):
        parse_demos(words)


def test_without_zarr_the_error_says_what_to_install(config, monkeypatch):
    monkeypatch.delitem(sys.modules, "models.replay_buffer")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ModuleNotFoundError, match=r"zarr is not installed: pip install.*train"):
        config.task()
