"""The trainer by itself, on the smallest module that can be trained."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models.trainer import TrainerConfig, TrainingRun, learning_rate


@pytest.fixture
def config(tmp_path):
    return TrainerConfig(out=tmp_path / "whole", num_updates=7, batch_size=3, save_every=3)


class StopError(Exception):
    """Thrown into a run to interrupt it."""


def train(config, stop_at=None):
    """Fit a line to random points; weights after it, or StopError at the given update."""
    torch.manual_seed(config.seed)
    module = nn.Linear(2, 1)

    def loss_at(update, generator):
        if update == stop_at:
            raise StopError
        x = torch.randn(config.batch_size, 2, generator=generator)
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    run = TrainingRun(module, config, config.identity())
    figures = run.train(loss_at)
    return module.state_dict(), figures


@pytest.mark.parametrize("stop_at", [0, 1, 3, 5, 6])
def test_a_run_interrupted_anywhere_ends_with_the_same_weights(config, tmp_path, stop_at):
    whole, _ = train(config)
    parts = dataclasses.replace(config, out=tmp_path / "parts")
    with pytest.raises(StopError):
        train(parts, stop_at)
    resumed, _ = train(parts)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_a_resumed_run_repeats_no_saved_update(config):
    with pytest.raises(StopError):
        train(config, stop_at=5)
    updates = []

    def loss_at(update, generator):
        updates.append(update)
        return module(torch.ones(1, 2)).sum()

    module = nn.Linear(2, 1)
    TrainingRun(module, config, config.identity()).train(loss_at)
    assert updates == [3, 4, 5, 6]


def test_the_result_is_the_average_of_the_weights_by_the_slow_formula(config):
    module, history = nn.Linear(2, 1), []

    def loss_at(update, generator):
        history.append(module.weight.detach().clone())
        x = torch.randn(config.batch_size, 2, generator=generator)
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    TrainingRun(module, config, config.identity()).train(loss_at)
    history.append(load_file(config.out / "training" / "state.safetensors")["policy.weight"])
    average = history[0]
    for n, weight in enumerate(history[1:], start=1):
        decay = min(config.ema_decay, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(module.weight.detach(), average)
    assert not torch.equal(average, history[-1])


def test_two_updates_of_one_run_have_different_draws(config):
    draws = []
    module = nn.Linear(2, 1)

    def loss_at(update, generator):
        draws.append(torch.randn(4, generator=generator))
        return module(draws[-1].view(2, 2)).square().sum()

    TrainingRun(module, config, config.identity()).train(loss_at)
    assert len({tuple(draw.tolist()) for draw in draws}) == config.num_updates


def test_another_identity_in_the_same_folder_is_refused_and_says_what_differs(config):
    train(config)
    with pytest.raises(ValueError, match=r"another configuration.*learning_rate.*0\.001, 0\.1"):
        train(dataclasses.replace(config, learning_rate=0.1))


def test_where_and_how_often_it_is_saved_is_not_part_of_the_identity(config, tmp_path):
    elsewhere = dataclasses.replace(config, out=tmp_path / "elsewhere", save_every=100)
    assert elsewhere.identity() == config.identity()


def test_a_finished_run_says_so(config):
    train(config)
    assert TrainingRun(nn.Linear(2, 1), config, config.identity()).finished


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing(config):
    long = dataclasses.replace(config, num_updates=100_000)
    rates = [learning_rate(update, long) for update in (0, 249, 499, 50_000, 99_999)]
    assert rates == pytest.approx([2e-6, 5e-4, 1e-3, 5e-4, 0], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("field", ["num_updates", "batch_size", "save_every"])
def test_ranges_are_checked_by_name(config, field):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(config, **{field: 0})
