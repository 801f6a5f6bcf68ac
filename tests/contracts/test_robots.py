"""One suite for every simulated robot: add its name to ROBOTS and all of this runs over it."""

import re
from pathlib import Path

import numpy as np
import pytest

import client.sims
from benchmarks.episodes import Conditions, make_specs, play
from client.history import ObservationHistory
from client.sims.real_time import RealTimeRobot, sample_pool
from client.sims.simulation import load_robot, robot_names

ROBOTS = (
    "desk",
    "pusht",
    "pusht_image",
    "puck",  # the example in CONTRIBUTING.md
)
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture(scope="module", autouse=True)
def example(tmp_path_factory):
    """The robot of CONTRIBUTING.md, installed as it says there."""
    code = re.search(
        r"## Adding a robot.*?```python\n(.*?)```", CONTRIBUTING.read_text("utf-8"), re.DOTALL
    )
    sims = tmp_path_factory.mktemp("sims")
    (sims / "puck").mkdir()
    (sims / "puck" / "__init__.py").write_text('"""A puck on a rail."""\n')
    (sims / "puck" / "robot.py").write_text(code[1], "utf-8")
    client.sims.__path__.append(str(sims))
    yield
    client.sims.__path__.remove(str(sims))


@pytest.fixture(scope="module", params=ROBOTS)
def robot(request):
    return load_robot(request.param)


@pytest.fixture(scope="module")
def simulation(robot):
    return robot.simulation()


def start_of(simulation, seed):
    return simulation.sample_start(np.random.default_rng(seed))


def actions_of(spec, ticks, seed=0):
    """Within the limits, each for a few ticks, so that something moves: float32 [ticks, dim]."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(spec.action_minimum, spec.action_maximum, (ticks, spec.action_dim))
    return np.repeat(drawn, 5, axis=0)[:ticks].astype(np.float32)


def drive(simulation, start, actions):
    """What was seen from the start to after the last action: by name, [ticks + 1, …]."""
    simulation.reset(start)
    seen = [simulation.observation()]
    for action in actions:
        simulation.step(action)
        seen.append(simulation.observation())
    return {name: np.stack([one[name] for one in seen]) for name in seen[0]}


def motion(seen):
    """Largest change of any number, by name."""
    return {name: np.ptp(array.astype(np.float64), axis=0).max() for name, array in seen.items()}


def test_every_robot_there_is_is_held_to_this():
    assert sorted(ROBOTS) == robot_names()


def test_it_is_found_by_the_task_of_its_policies(robot):
    assert load_robot(robot.spec.task) is robot
    with pytest.raises(ValueError, match="robot: expected one that is simulated here"):
        load_robot("nobody")


def test_what_it_sees_is_what_its_specification_says(robot, simulation):
    rng = np.random.default_rng(0)
    for _ in range(3):
        seen = drive(simulation, simulation.sample_start(rng), actions_of(robot.spec, 40))
        history = ObservationHistory(robot.spec)
        for tick in range(41):
            history.add(tick, {name: array[tick] for name, array in seen.items()})
        robot.spec.validate_observation(history.stacked())


def test_a_start_depends_on_the_generator_alone(simulation):
    first, again, other = (drive(simulation, start_of(simulation, seed), []) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_a_reset_is_exact(robot, simulation):
    """The same actions from the same start, after another episode and in another simulation."""
    start, other = start_of(simulation, 1), start_of(simulation, 2)
    actions = actions_of(robot.spec, 40)
    first = drive(simulation, start, actions)
    assert max(motion(first).values()) > 0
    fresh = robot.simulation()
    fresh.reset(start)
    drive(simulation, other, actions[::-1])
    simulation.reset(start)
    np.testing.assert_array_equal(simulation.safe_action(), fresh.safe_action())
    for again in (simulation, fresh):
        for name, array in drive(again, start, actions).items():
            np.testing.assert_array_equal(array, first[name])


def test_ticks_are_counted_from_the_reset(robot, simulation):
    drive(simulation, start_of(simulation, 1), actions_of(robot.spec, 7))
    assert simulation.ticks == 7
    simulation.reset(start_of(simulation, 1))
    assert simulation.ticks == 0


def test_the_safe_action_is_one_and_holds(robot, simulation):
    actions = actions_of(robot.spec, 20)
    moved = motion(drive(simulation, start_of(simulation, 3), actions))
    held = []
    for tick in range(100):
        action = simulation.safe_action()
        assert (action.shape, action.dtype) == ((robot.spec.action_dim,), np.float32)
        np.testing.assert_array_equal(robot.limits.check(action[None]), action[None])
        simulation.step(action)
        if tick >= 60:  # what was in motion has come to rest
            held.append(simulation.observation())
    held = {name: np.stack([one[name] for one in held]) for name in held[0]}
    for name, largest in motion(held).items():
        assert largest <= 0.02 * moved[name]


def test_an_episode_in_which_nothing_is_done_ends_in_time_and_not_before(robot, simulation):
    start = start_of(simulation, 4)
    moved = motion(drive(simulation, start, actions_of(robot.spec, 20)))
    simulation.reset(start)
    seen = [simulation.observation()]
    for _ in range(robot.episode_ticks):
        assert {simulation.outcome(task) for task in robot.tasks} == {None}
        simulation.step(simulation.safe_action())
        seen.append(simulation.observation())
    assert {simulation.outcome(task) for task in robot.tasks} == {"timeout"}
    for name, largest in motion({n: np.stack([one[n] for one in seen]) for n in moved}).items():
        assert largest <= 0.02 * moved[name]
    simulation.reset(start_of(simulation, 4))
    assert {simulation.outcome(task) for task in robot.tasks} == {None}


def test_scores_are_of_every_task_or_there_are_none_and_never_fall(robot, simulation):
    simulation.reset(start_of(simulation, 5))
    before = simulation.scores()
    assert not before or tuple(before) == robot.tasks
    for action in actions_of(robot.spec, 60):
        simulation.step(action)
        for task, score in simulation.scores().items():
            assert 0 <= before[task] <= score <= 1
        before = simulation.scores()


def plain(text):
    return "".join(c for c in text.lower() if c.isalnum() or c == " ").strip()


def test_every_task_has_words_of_its_own_and_no_list_repeats_another(robot):
    owners = {}
    for name in ("known", "validation", "unseen"):
        phrasings = robot.phrasings(name)
        assert tuple(phrasings) == robot.tasks
        for task, texts in phrasings.items():
            assert texts
            for text in texts:
                assert owners.setdefault(plain(text), (name, task)) == (name, task)


def test_its_episodes_can_be_played(robot):
    """By a policy that pushes about at random."""
    specs = make_specs(1, 1, robot.phrasings("known"))

    def sample(_observation, _instructions, seeds, _num_steps):
        return np.stack([actions_of(robot.spec, robot.spec.horizon, seed) for seed in seeds])

    one, two = (play(robot, specs, sample, lambda _: Conditions(0.0, 1)) for _ in range(2))
    assert one == two
    assert {ending.outcome for ending in one} <= {"asked", "opposite", "other", "timeout"}


# ── in wall-clock time ───────────────────────────────────────────────────────────────────────────


class Clock:
    """Moved by the test."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def real(robot, clock):
    return RealTimeRobot(robot, sample_pool(robot, robot.tasks[:1], seed=7), clock=clock)


def test_on_time_it_is_the_simulation_and_a_missed_tick_is_a_safe_one(
    robot, simulation, real, clock
):
    ((start, task),) = sample_pool(robot, robot.tasks[:1], seed=7)
    actions = actions_of(robot.spec, 10)
    expected = drive(simulation, start, actions)
    assert real.task == task
    for tick, action in enumerate(actions):
        for name, array in real.observe().items():
            np.testing.assert_array_equal(array, expected[name][tick])
        real.apply(action)
        clock.now_s += robot.spec.control_period_s
    clock.now_s += 3 * robot.spec.control_period_s
    seen = real.observe()
    for _ in range(3):
        simulation.step(simulation.safe_action())
    assert real.missed_ticks == 3
    for name, array in simulation.observation().items():
        np.testing.assert_array_equal(seen[name], array)


@pytest.mark.parametrize("wrong", ["shape", "nan", "above", "below"])
def test_a_bad_action_is_refused_and_moves_nothing(robot, real, wrong):
    spec = robot.spec
    action = {
        "shape": np.zeros(spec.action_dim + 1),
        "nan": np.full(spec.action_dim, np.nan),
        "above": np.array(spec.action_maximum) + 0.01,
        "below": np.array(spec.action_minimum) - 0.01,
    }[wrong]
    before = real.observe()
    with pytest.raises(ValueError, match="action: expected"):
        real.apply(action.astype(np.float32))
    assert real.simulation.ticks == 0
    for name, array in real.observe().items():
        np.testing.assert_array_equal(array, before[name])


def test_the_limits_themselves_can_be_applied(robot, real):
    for limit in (robot.spec.action_minimum, robot.spec.action_maximum):
        real.observe()
        real.apply(np.array(limit, np.float32))
    assert real.simulation.ticks == 2
