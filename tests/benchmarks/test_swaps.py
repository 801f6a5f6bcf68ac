"""What is counted of a fleet while models are swapped, on records made up here."""

import signal

import numpy as np
import pytest

from benchmarks.fleet import FleetRecord
from benchmarks.swaps import Swapping, SwapsConfig, loading, misnamed, row_of, table_of
from models import checkpoint
from tests.policies import make_policy, save_checkpoint


def make_record(due_s, model_id, outcome=None, latency_s=0.01):
    model_id = np.array(model_id)
    answered = model_id != ""
    nothing = np.full(len(due_s), np.nan)
    return FleetRecord(
        robot=np.zeros(len(due_s), np.int64),
        due_s=np.array(due_s, float),
        latency_s=np.where(answered, latency_s, np.nan),
        outcome=np.where(answered, "on_time", "lost") if outcome is None else np.array(outcome),
        refusal_s=nothing,
        num_steps=np.where(answered, 10, 0),
        rows_per_call=nothing,
        queue_s=nothing,
        model_id=model_id,
        send_delay_s=nothing,
        started_at_s=0.0,
        cpu_s=0.0,
    )


def test_a_swap_lasts_from_the_signal_until_the_model_is_there():
    due_s = np.array([0.0, 1.0, 1.9, 2.0, 5.0, 6.9, 7.0])
    within = loading(due_s, [1.0, 5.0], [2.0, 7.0])
    assert within.tolist() == [False, True, True, False, True, True, False]


@pytest.mark.parametrize(
    ("due_s", "model_id", "wrong"),
    [
        ([0, 11, 15, 20, 35], ["a", "a", "b", "b", "a"], 0),
        ([0], ["b"], 1),  # before anybody had heard of it
        ([12, 12], ["a", "b"], 0),  # either may have made it
        ([20], ["a"], 1),  # which is gone
        ([35], ["b"], 1),
        ([12], ["c"], 1),  # never served
        ([0, 20], ["", ""], 0),  # not answered at all
    ],
)
def test_an_answer_is_misnamed_when_that_model_was_not_served(due_s, model_id, wrong):
    record = make_record(due_s, model_id)
    assert misnamed(record, ("a", "b"), [10.0, 30.0], [15.0, 34.0]) == wrong


def test_a_row_counts_every_request_once():
    outcome = ["on_time", "late", "refused", "lost", "on_time"]
    record = make_record(range(5), ["a", "a", "", "", "a"], outcome, [0.01, 0.2, 0, 0, 0.03])
    row = row_of("all", record, np.array([True] * 4 + [False]))
    assert [row[name] for name in ("due_requests", "missed")] == [4, 3]
    assert [row[name] for name in ("on_time", "late", "refused", "lost")] == [1, 1, 1, 1]
    assert row["latency_max_s"] == 0.2
    assert row["latency_p99_s"] is None  # of two
    assert table_of([row]).row_count == 1


class Server:
    """Notes signals; its log says what it is told to say."""

    def __init__(self):
        self.log, self.signals = "", []
        self.process = self

    def send_signal(self, number):
        self.signals.append(number)


def test_each_swap_puts_the_other_name_in_place_and_waits_for_the_one_before(tmp_path):
    save_checkpoint(tmp_path, make_policy())
    server = Server()
    swapping = Swapping(tmp_path, server, every_s=10.0, swaps=2)
    swapping.follow(9.9)
    assert server.signals == []
    swapping.follow(10.0)
    assert server.signals == [signal.SIGHUP]
    assert checkpoint.load(tmp_path)[0].model_id == "tiny-swapped"
    with pytest.raises(RuntimeError, match="every-s"):
        swapping.follow(20.0)
    server.log += "tiny-swapped in place of tiny\n"
    swapping.follow(12.5)
    swapping.follow(20.1)
    assert checkpoint.load(tmp_path)[0].model_id == "tiny"
    server.log += "tiny in place of tiny-swapped\n"
    swapping.follow(22.0)
    swapping.follow(99.0)
    assert (swapping.asked_s, swapping.taken_s) == ([10.0, 20.1], [12.5, 22.0])
    assert len(server.signals) == 2


@pytest.mark.parametrize("field", ["swaps", "robots", "budget_ms", "every_s"])
def test_what_makes_no_sense_is_named(field):
    with pytest.raises(ValueError, match=field if field != "every_s" else "duration_s"):
        SwapsConfig(**{field: 0})
