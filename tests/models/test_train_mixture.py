"""Training on a 2-D mixture: exact resuming, verified files, and a bundled network that is good."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models import train_mixture as module
from models.checkpoint import CheckpointError, file_sha256
from models.guided_step import GuidedStep
from models.mixtures import QUADRANTS, Mixture
from models.sampling import Sampling, denoise
from models.train_mixture import (
    BUNDLED,
    CARD,
    TrainMixtureConfig,
    draw_batch,
    load_mixture_network,
    train_mixture,
    trained_network,
)

TWO = Mixture(modes=(((0.5, 0.0),), ((-0.5, 0.0), (-0.5, 0.5))), std=0.1)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"modes": TWO.modes, "std": TWO.std}))
    return TrainMixtureConfig(
        out=tmp_path / "whole", mixture=path, num_updates=6, batch_size=32, hidden=8
    )


def weights(trained):
    return trained.network.state_dict()


def assert_equal_weights(a, b):
    assert weights(a).keys() == weights(b).keys()
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name


def samples(trained, condition, count, sampling):
    diffusion = trained.diffusion
    step = GuidedStep(
        trained.network, diffusion.alpha_bar, diffusion.prediction_type, diffusion.clip
    )
    rng = np.random.default_rng(condition)
    one_hot = torch.eye(trained.mixture.num_conditions)[[condition] * (2 * count)]
    drop = torch.arange(2 * count) % 2 == 1
    with torch.inference_mode():
        conditions = trained.network.condition_part(torch.empty(2 * count, 0), one_hot, drop)
        return denoise(
            step.eval(),
            diffusion.alpha_bar,
            conditions,
            sampling,
            lambda _: rng.standard_normal((count, 1, 2), np.float32),
        )[:, 0].numpy()


def sliced_w2(a, b):
    """Root mean square distance of sorted projections, over 64 directions of the half circle."""
    angles = np.pi * np.arange(64) / 64
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return np.sqrt(np.mean((np.sort(a @ directions, 0) - np.sort(b @ directions, 0)) ** 2))


@pytest.mark.parametrize("condition", range(4))
def test_samples_of_the_bundled_network_land_in_the_asked_quadrant(condition):
    points = samples(
        load_mixture_network(BUNDLED), condition, 1_000, Sampling(10, guidance_scale=1.0)
    )
    quadrant = np.sign(QUADRANTS.modes[condition][0])
    assert np.mean(np.all(np.sign(points) == quadrant, axis=1)) >= 0.99


def test_the_bundled_network_draws_the_mixture_itself_without_guidance():
    drawn = samples(load_mixture_network(BUNDLED), 2, 4_000, Sampling(50))
    wanted = QUADRANTS.draw(2, 4_000, np.random.default_rng(7))
    assert sliced_w2(drawn, wanted) < 0.04  # of 4,000 exact samples: about 0.015


def test_without_its_condition_the_bundled_network_draws_every_quadrant_equally_often():
    points = samples(load_mixture_network(BUNDLED), 0, 4_000, Sampling(20, guidance_scale=-1.0))
    share = [
        np.mean(np.all(np.sign(points) == np.sign(modes[0]), axis=1)) for modes in QUADRANTS.modes
    ]
    assert share == pytest.approx([0.25] * 4, abs=0.04)


def test_the_bundled_network_is_what_its_card_says():
    card = json.loads((BUNDLED / CARD).read_text())
    trained = load_mixture_network(BUNDLED)
    assert trained.mixture == QUADRANTS
    assert card["sha256"] == file_sha256(BUNDLED / "model.safetensors")
    assert trained.diffusion.prediction_type == card["diffusion"]["prediction_type"]
    assert not trained.network.training
    assert not any(p.requires_grad for p in trained.network.parameters())


def test_the_bundled_network_is_what_the_settings_of_today_would_train(tmp_path):
    card = json.loads((BUNDLED / CARD).read_text())
    assert TrainMixtureConfig(out=tmp_path).identity().items() - {("mixture", None)} <= set(
        card["training"].items()
    )


def test_the_bundled_network_is_taken_where_it_fits_and_the_folder_left_alone(tmp_path):
    folder = tmp_path / "unused"
    assert_equal_weights(trained_network(QUADRANTS, folder), load_mixture_network(BUNDLED))
    assert not folder.exists()


def test_another_mixture_is_trained_once_and_then_loaded(tmp_path, monkeypatch):
    folder, configs = tmp_path / "other", []

    def short(**settings):
        configs.append(settings)
        return TrainMixtureConfig(**settings, num_updates=3, batch_size=8, hidden=8)

    monkeypatch.setattr(module, "TrainMixtureConfig", short)
    first = trained_network(TWO, folder)
    assert first.mixture == TWO
    assert_equal_weights(trained_network(TWO, folder), first)
    assert configs == [{"out": folder}]


def test_a_run_interrupted_and_resumed_ends_with_the_same_weights(config, tmp_path, monkeypatch):
    whole = train_mixture(config)
    parts = dataclasses.replace(config, out=tmp_path / "parts", save_every=2)

    class InterruptedRunError(Exception):
        pass

    def interrupt(mixture, settings, update):
        if update == 5:  # after the state of update 4 has been saved
            raise InterruptedRunError
        return draw_batch(mixture, settings, update)

    monkeypatch.setattr(module, "draw_batch", interrupt)
    with pytest.raises(InterruptedRunError):
        train_mixture(parts)
    assert not (parts.out / CARD).exists()
    monkeypatch.setattr(module, "draw_batch", draw_batch)
    assert_equal_weights(train_mixture(parts), whole)


def test_what_is_loaded_is_what_was_trained(config):
    trained = train_mixture(config)
    loaded = load_mixture_network(config.out)
    assert_equal_weights(loaded, trained)
    assert (loaded.mixture, loaded.diffusion) == (TWO, trained.diffusion)


def test_a_finished_run_is_loaded_and_not_written_again(config):
    train_mixture(config)
    written = (config.out / CARD).stat().st_mtime_ns
    assert train_mixture(config).mixture == TWO
    assert (config.out / CARD).stat().st_mtime_ns == written


def test_another_mixture_in_the_same_folder_is_refused(config):
    train_mixture(config)
    other = {"modes": TWO.modes, "std": 0.2}
    config.mixture.write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"another configuration.*mixture.*0\.2"):
        train_mixture(config)
    with pytest.raises(ValueError, match=r"another configuration.*mixture"):
        trained_network(Mixture(TWO.modes, 0.2), config.out)


def test_batches_are_fresh_repeatable_and_of_the_condition_they_say(config):
    config = dataclasses.replace(config, batch_size=4_000)
    points, conditions = draw_batch(TWO, config, 3)
    assert points.shape == (4_000, 1, 2)
    assert points.dtype == torch.float32
    assert torch.equal(draw_batch(TWO, config, 3)[0], points)
    assert not torch.equal(draw_batch(TWO, config, 4)[0], points)
    assert not torch.equal(draw_batch(TWO, dataclasses.replace(config, seed=1), 3)[0], points)
    assert conditions.float().mean() == pytest.approx(0.5, abs=0.04)
    for condition, mean in enumerate([(0.5, 0.0), (-0.5, 0.25)]):
        drawn = points[conditions == condition, 0].mean(0)
        assert drawn.tolist() == pytest.approx(mean, abs=0.03)


@pytest.fixture
def copied(tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(BUNDLED, folder)
    return folder


def test_altered_weights_are_refused(copied):
    path = copied / "model.safetensors"
    tensors = load_file(path)
    tensors["null_cond"][0] += 1
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"copied/model\.safetensors: altered"):
        load_mixture_network(copied)


def test_missing_files_are_named(copied, tmp_path):
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"copied/model\.safetensors: not found"):
        load_mixture_network(copied)
    with pytest.raises(CheckpointError, match=r"nowhere/.*: not found.*train-mixture"):
        load_mixture_network(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 2, "format.*2"),
        ("mixture", {"modes": [[[0, 0]]], "std": 7}, "std.*7"),
        ("mixture", {"modes": [[[0, 0, 0]]], "std": 0.1}, "card"),
        ("network", {"num_conditions": 0}, "num_conditions"),
        ("network", {"num_conditions": 4, "depth": 3}, "depth"),
        ("diffusion", {"clip": -1}, "clip"),
        ("network", {"num_conditions": 4, "hidden": 64}, "does not fit"),
    ],
)
def test_a_card_that_is_wrong_is_refused_by_name(copied, field, value, message):
    card = json.loads((copied / CARD).read_text())
    (copied / CARD).write_text(json.dumps({**card, field: value}))
    with pytest.raises(CheckpointError, match=rf"(?s)copied/.*{message}"):
        load_mixture_network(copied)


def test_a_card_that_is_no_json_is_refused_by_name(copied):
    (copied / CARD).write_text("{")
    with pytest.raises(CheckpointError, match=r"copied/trained_mixture\.json: not the card"):
        load_mixture_network(copied)


def test_a_dropout_that_leaves_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="condition_dropout"):
        TrainMixtureConfig(out=tmp_path, condition_dropout=1.0)
