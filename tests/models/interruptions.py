"""A training run that is cut off and begun again."""

import pytest

from models import train


class InterruptedRunError(Exception):
    pass


def train_with_a_break(config, monkeypatch, break_at=5):
    """Train, fail in the update with that number, and train again to the end.

    Args:
        config: saves its state before that update.
        monkeypatch: the test's.
        break_at: counted from 1.
    """
    loss_of, calls = train.loss_of, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == break_at:
            raise InterruptedRunError
        return loss_of(*arguments)

    monkeypatch.setattr(train, "loss_of", interrupt)
    with pytest.raises(InterruptedRunError):
        train.train(config)
    assert not (config.out / "manifest.json").exists()
    monkeypatch.setattr(train, "loss_of", loss_of)
    train.train(config)
