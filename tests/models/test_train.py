"""The trainer: resuming changes nothing, and it learns."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from client.sims.desk.spec import DESK_IMAGE_SPEC, DESK_SPEC
from models import checkpoint, train
from models.instruction_encoder import INSTRUCTION_DIM
from models.networks.film_mlp import FilmMlpConfig
from models.networks.transformer import TransformerConfig
from models.policy import DiffusionConfig, DiffusionPolicy
from models.sampling import Sampling, sample_chunks
from models.train import Batches, TrainConfig
from models.vision import VisionConfig
from tests.models.interruptions import train_with_a_break
from tests.policies import make_policy

TASKS = ("drawer_open", "drawer_close")
PHRASINGS = {
    "drawer_open": ["open the drawer", "pull the drawer out"],
    "drawer_close": ["close the drawer", "push the drawer in"],
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two tasks that differ in nothing but the instruction: move right, or left."""
    monkeypatch.setattr(train.desk_phrasings, "known", lambda: PHRASINGS)
    rng = np.random.default_rng(0)
    episodes, length = 40, 20
    task = np.array([TASKS[i % 2] for i in range(episodes)])
    action = np.zeros((episodes * length, 4), np.float32)
    action[:, 0] = np.repeat(np.where(task == "drawer_open", 0.8, -0.8), length)
    action += 0.05 * rng.standard_normal(action.shape).astype(np.float32)
    np.savez(
        tmp_path / "demos.npz",
        state=rng.standard_normal((episodes * length, 13)).astype(np.float32),
        action=action,
        episode_ends=length * np.arange(1, episodes + 1),
        task=task,
    )
    return TrainConfig(
        demos=tmp_path / "demos.npz", out=tmp_path / "whole", num_updates=6, batch_size=16
    )


@pytest.mark.parametrize("prediction_type", ["sample", "v", "epsilon"])
def test_a_perfect_network_has_no_loss(config, monkeypatch, prediction_type):
    """The target of each prediction type, from its definition and not from the trainer's code."""
    policy = make_policy(prediction_type, spec=DESK_SPEC).train()
    x0 = torch.randn(5, 16, 4, generator=torch.Generator().manual_seed(0))
    alpha_bar = torch.from_numpy(policy.diffusion.alpha_bar)

    def perfect(x_t, film):
        ab = alpha_bar[film[:, 0].long()][:, None, None]
        clean = x0.repeat_interleave(config.draws_per_window, 0)
        eps = (x_t - ab.sqrt() * clean) / (1 - ab).sqrt()
        x0_conversions = {
            "sample": clean,
            "epsilon": eps,
            "v": ab.sqrt() * eps - (1 - ab).sqrt() * clean,
        }
        return x0_conversions[prediction_type].float()

    network = policy.network
    monkeypatch.setattr(network, "denoise", perfect)
    monkeypatch.setattr(network, "time_part", lambda t: t.float()[:, None])
    monkeypatch.setattr(network, "condition_part", lambda o, i, d: torch.zeros(len(o), 1))
    batch = ({"state": torch.zeros(5, 2, 13)}, torch.zeros(5, INSTRUCTION_DIM), x0)
    generator = torch.Generator().manual_seed(1)
    assert train.loss_of(policy, batch, config, generator).item() < 1e-4


def weights(folder):
    return checkpoint.load(folder)[1].state_dict()


def test_an_interrupted_and_resumed_run_ends_with_the_same_weights(config, tmp_path, monkeypatch):
    train.train(config)
    parts = dataclasses.replace(config, out=tmp_path / "parts", save_every=2)

    train_with_a_break(parts, monkeypatch)
    whole, resumed = weights(config.out), weights(parts.out)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_finished_run_is_left_alone(config):
    train.train(config)
    tuned = dataclasses.replace(checkpoint.read_manifest(config.out), min_steps=4)
    checkpoint.write_manifest(config.out, tuned)
    assert train.train(config).min_steps == 4


def test_other_demonstrations_under_the_same_name_are_refused(config):
    train.train(config)
    with np.load(config.demos) as file:
        content = dict(file)
    np.savez(config.demos, **{**content, "action": 2 * content["action"]})
    with pytest.raises(ValueError, match="demos_sha256"):
        train.train(config)


def test_the_saved_state_holds_the_raw_weights_not_their_average(config):
    train.train(config)
    state = load_file(config.out / "training" / "state.safetensors")
    name = "network.read_in.weight"
    assert not torch.equal(state[f"policy.{name}"], state[f"ema.{name}"])


def test_another_configuration_in_the_same_folder_is_refused(config):
    train.train(config)
    with pytest.raises(ValueError, match=r"another configuration.*seed.*\(0, 1\)"):
        train.train(dataclasses.replace(config, seed=1))


@pytest.mark.parametrize("prediction_type", ["sample", "v"])
def test_it_learns_what_only_the_instruction_tells(config, tmp_path, prediction_type):
    train.train(
        dataclasses.replace(
            config,
            out=tmp_path / prediction_type,
            num_updates=200,
            batch_size=48,
            draws_per_window=2,
            ema_decay=0.98,
            prediction_type=prediction_type,
        )
    )
    _, policy = checkpoint.load(tmp_path / prediction_type)
    texts = ["open the drawer", "close the drawer"]
    actions = sample_chunks(
        policy,
        {"state": np.zeros((2, 2, 13), np.float32)},
        train.InstructionEncoder().encode(texts),
        Sampling(num_steps=10),
        seeds=[0, 0],
    )
    assert actions[0, :, 0].mean() == pytest.approx(0.8, abs=0.25)
    assert actions[1, :, 0].mean() == pytest.approx(-0.8, abs=0.25)


@pytest.mark.parametrize(
    ("field", "value"), [("num_updates", 0), ("batch_size", 0), ("instruction_dropout", 1.0)]
)
def test_ranges_are_checked_by_name(config, field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(config, **{field: value})


def test_a_run_begun_when_there_was_one_network_goes_on(config):
    """Its record names no network; a run with another one is not it."""
    train.train(config)
    record = json.loads((config.out / "training" / "run.json").read_text())["config"]
    assert not {"network", "sizes"} & set(record)
    with pytest.raises(ValueError, match=r"another configuration.*network.*None.*unet1d"):
        train.train(dataclasses.replace(config, network="unet1d", sizes=("widths=8,16",)))


@pytest.fixture
def image_config(config, tmp_path):
    """Ten steps of which a camera saw four: frame k is as bright as k, the hand is at the step."""
    np.savez(
        tmp_path / "pictures.npz",
        camera=np.full((4, 96, 96, 3), np.arange(4, dtype=np.uint8)[:, None, None, None]),
        camera_at=[0, 0, 0, 0, 1, 2, 2, 2, 2, 3],
        hand=np.repeat(np.arange(10, dtype=np.float32)[:, None], 4, axis=1),
        action=np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 4),
        episode_ends=[5, 10],
        task=np.array(TASKS),
    )
    return dataclasses.replace(
        config, demos=tmp_path / "pictures.npz", observation="image", num_updates=2
    )


def test_a_window_has_the_frame_that_was_seen_last(image_config):
    network = FilmMlpConfig.for_spec(DESK_IMAGE_SPEC, 1, VisionConfig())
    policy = DiffusionPolicy(DESK_IMAGE_SPEC, network, DiffusionConfig(), VisionConfig())
    observation, _, _ = Batches(image_config.task(), policy, image_config).draw(0)
    assert observation["camera"].shape == (16, 1, 84, 84, 3)
    steps = observation["hand"][:, 0, 0].long()
    assert len(set(steps.tolist())) > 5
    expected = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2, 3])[steps]
    assert torch.equal(observation["camera"].amax((1, 2, 3, 4)).long(), expected)


@pytest.mark.parametrize("kind", [FilmMlpConfig, TransformerConfig])
def test_pictures_of_the_desk_train_what_the_network_is_shown(image_config, kind):
    manifest = train.train(dataclasses.replace(image_config, network=kind.kind))
    assert manifest.spec == DESK_IMAGE_SPEC
    assert manifest.vision == kind.vision
    assert manifest.network == kind.for_spec(DESK_IMAGE_SPEC, 1, kind.vision)
    assert checkpoint.load(image_config.out)[0] == manifest


def test_a_recording_without_pictures_is_refused_and_so_is_one_without_states(config, image_config):
    with pytest.raises(ValueError, match=r"expected a recording with 'hand'.*--robot desk_image"):
        train.train(dataclasses.replace(image_config, demos=config.demos))
    with pytest.raises(ValueError, match="expected a recording with 'state'"):
        train.train(dataclasses.replace(config, demos=image_config.demos))
