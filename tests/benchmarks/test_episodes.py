"""Episodes in simulated time, played by the scripted experts, whose success is known."""

import numpy as np
import pytest

from benchmarks.episodes import Conditions, Ending, make_specs, play
from benchmarks.success import success_rows
from client.sims.desk.experts import action_for
from client.sims.desk.robot import ROBOT
from client.sims.desk.spec import DESK_SPEC, METRES_PER_ACTION, OPPOSITE, TASKS

PHRASINGS = {task: [task] for task in TASKS}  # the "policy" below reads the task off the words


def expert_sample(observation, instructions, seeds, num_steps):
    """A chunk of what the expert would do if only its own hand moved."""
    chunks = np.zeros((len(seeds), DESK_SPEC.horizon, 4), np.float32)
    for row, task in enumerate(instructions):
        state = observation["state"][row, -1].copy()
        for i in range(DESK_SPEC.horizon):
            chunks[row, i] = action_for(task, state)
            state[:3] += METRES_PER_ACTION * chunks[row, i, :3]
    return chunks


def at_once(_rng):
    return Conditions(0.0, 10)


def outcomes_of(*arguments):
    return [ending.outcome for ending in play(ROBOT, *arguments)]


def test_chunks_of_the_expert_do_what_is_asked():
    specs = make_specs(4, 3, PHRASINGS)
    outcomes = outcomes_of(specs, expert_sample, at_once)
    assert outcomes.count("asked") >= 21  # of 24; open loop for eight ticks, the expert is worse


def test_the_opposite_instruction_does_the_opposite():
    specs = make_specs(2, 4, {task: [OPPOSITE[task]] for task in TASKS})
    outcomes = outcomes_of(specs, expert_sample, at_once)
    assert outcomes.count("opposite") >= 10  # of 12


def test_an_answer_that_never_comes_moves_nothing():
    specs = make_specs(1, 5, PHRASINGS)
    outcomes = outcomes_of(specs, expert_sample, lambda _: Conditions(float("inf"), 10))
    assert outcomes == ["timeout"] * 6


def test_answers_later_than_the_horizon_are_never_executed():
    specs = make_specs(1, 5, PHRASINGS)
    too_late_s = DESK_SPEC.horizon * DESK_SPEC.control_period_s
    outcomes = outcomes_of(specs, expert_sample, lambda _: Conditions(too_late_s, 10))
    assert outcomes == ["timeout"] * 6


def test_episodes_depend_on_their_own_seed_alone():
    specs = make_specs(2, 7, PHRASINGS)
    seen = {}

    def record(observation, instructions, seeds, num_steps):
        for state, seed in zip(observation["state"], seeds, strict=True):
            seen.setdefault(int(seed), state.copy())
        return expert_sample(observation, instructions, seeds, num_steps)

    together = outcomes_of(specs, record, at_once)
    first, seen = seen, {}
    alone = [outcomes_of([spec], record, at_once)[0] for spec in specs]
    assert alone == together
    assert seen.keys() == first.keys()
    for seed, state in seen.items():
        np.testing.assert_array_equal(state, first[seed])


def test_different_seeds_share_nothing():
    one, two = ({spec.seed for spec in make_specs(50, seed, PHRASINGS)} for seed in (1, 2))
    assert not one & two
    assert len(one) == 300


def test_rows_add_up():
    specs = make_specs(2, 1, PHRASINGS)
    outcomes = ["asked", "opposite", "other", "timeout"] * 3
    rows = success_rows(specs, [Ending(outcome) for outcome in outcomes])
    assert [row["task"] for row in rows] == [*TASKS, "all"]
    assert rows[-1]["episodes"] == 12
    for row in rows:
        rates = [row[f"{n}_rate"] for n in ("success", "opposite", "other", "timeout")]
        assert sum(rates) == pytest.approx(1)
    assert rows[-1]["success_rate"] == 0.25
    low, high = rows[-1]["success_interval"]
    assert low < 0.25 < high
