"""Which way of sampling is chosen, what the manifest then says, and that the planner obeys it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import binomtest, permutation_test

from benchmarks import tune
from benchmarks.choices import (
    Cell,
    Choice,
    choose_guidance,
    choose_interval,
    choose_pair,
    first_unless_better,
    paired_p_value,
)
from benchmarks.episodes import Ending
from benchmarks.latency import Latencies
from benchmarks.robot_policy import RobotPolicy
from benchmarks.server_process import running_server
from benchmarks.tune import TuneConfig
from benchmarks.tune_report import plot, recommend, tables_of
from client import InvalidRequestError, PolicyClient
from models import checkpoint
from models.grids import make_timesteps
from models.guidance import EVERYWHERE
from models.instruction_encoder import InstructionEncoder
from models.sampling import Sampling, sample_chunks
from tests.policies import make_policy, save_checkpoint
from tests.policy_server.simulation import ALPHA_BAR

DESK = checkpoint.PRETRAINED / "desk"


# ── more than chance ─────────────────────────────────────────────────────────────────────────────

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300)


@given(outcomes)
def test_the_paired_test_is_scipy_s_binomial_test_of_the_episodes_that_differ(pairs):
    one, other = zip(*pairs, strict=True)
    wins = sum(a and not b for a, b in pairs)
    losses = sum(b and not a for a, b in pairs)
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert paired_p_value(one, other) == pytest.approx(expected)


def won(count, of=300, lost_first=0):
    """Success by episode: all but the first few, of which `count` are won in all."""
    return [lost_first <= i < lost_first + count for i in range(of)]


def test_a_few_episodes_more_are_chance():
    assert first_unless_better({"old": won(295), "new": won(300)}) == "old"  # 5 to 0: p = 0.06


def test_a_clear_gain_is_not():
    assert first_unless_better({"old": won(280), "new": won(295)}) == "new"
    assert first_unless_better({"old": won(280), "a": won(285), "b": won(299)}) == "b"
    assert first_unless_better({"old": won(295), "new": won(280)}) == "old"


def test_among_several_that_are_better_chance_does_not_decide_either():
    assert first_unless_better({"old": won(280), "a": won(295), "b": won(296)}) == "a"
    assert first_unless_better({"old": won(280), "a": won(292), "b": won(300)}) == "b"


def test_the_more_candidates_the_larger_the_gain_must_be():
    seven_to_nothing = {"old": won(293), "new": won(300)}  # p = 0.016
    assert first_unless_better(seven_to_nothing) == "new"
    others = {f"other {i}": won(293) for i in range(9)}
    assert first_unless_better({**seven_to_nothing, **others}) == "old"


def test_pairs_count_not_totals():
    """Equal totals' difference, but from episodes that go either way."""
    old = won(200, of=300)
    new = won(210, of=300, lost_first=90)  # wins 100 that old loses, loses 90 that old wins
    assert first_unless_better({"old": old, "new": new}) == "old"
    assert first_unless_better({"old": old, "new": won(210)}) == "new"


def test_of_scores_the_paired_test_is_scipy_s_permutation_test():
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.1, 0.3):
        one, other = rng.random(11) + shift, rng.random(11)
        theirs = permutation_test(
            (one, other), lambda a, b: np.sum(a - b), permutation_type="samples", vectorized=False
        )
        assert paired_p_value(one, other) == pytest.approx(theirs.pvalue, abs=0.01)
    assert paired_p_value([0.5, 0.25], [0.5, 0.25]) == 1.0


def test_a_higher_score_is_better_even_if_nothing_is_solved():
    """Each episode a little better: no success to count, yet no chance either."""
    old = np.random.default_rng(0).uniform(0.2, 0.6, 50)
    cells = [
        Cell(Sampling(5, guidance_scale=w), "known", 100, ("timeout",) * 50, tuple(scores))
        for w, scores in {0.0: old, 1.0: old + 0.05, 3.0: old[::-1]}.items()
    ]
    assert choose_guidance(cells) == 1.0


# ── guidance scale ───────────────────────────────────────────────────────────────────────────────


def cell(successes, of=300, phrasings="known", **sampling):
    sampling = {"num_steps": 5, **sampling}
    ends = tuple("asked" if ok else "timeout" for ok in won(successes, of))
    return Cell(Sampling(**sampling), phrasings, 100, ends)


def test_guidance_that_helps_by_chance_is_not_paid_for():
    cells = [cell(n, guidance_scale=w) for w, n in {3.0: 298, 0.5: 299, 0.0: 297}.items()]
    assert choose_guidance(cells) == 0.0


def test_of_guidance_that_helps_the_one_preferred_is_not_displaced_by_an_episode():
    cells = [cell(n, guidance_scale=w) for w, n in {0.0: 240, 1.0: 290, 3.0: 291}.items()]
    assert choose_guidance(cells) == 1.0


def test_guidance_that_helps_is():
    cells = [cell(n, guidance_scale=w) for w, n in {0.0: 240, 1.0: 290, 3.0: 270}.items()]
    assert choose_guidance(cells) == 1.0


def test_guidance_is_judged_on_all_phrasings_together():
    known = [cell(n, guidance_scale=w) for w, n in {0.0: 300, 1.0: 290}.items()]
    others = [
        cell(n, guidance_scale=w, phrasings="validation") for w, n in {0.0: 280, 1.0: 290}.items()
    ]
    assert choose_guidance(known + others) == 0.0
    assert choose_guidance(others) == 1.0


# ── sampler, grid and steps ──────────────────────────────────────────────────────────────────────

COUNTS = (1, 2, 5, 10)


def pair(sampler, grid, *successes):
    counts = zip(COUNTS, successes, strict=True)
    return [cell(n, num_steps=count, sampler=sampler, grid=grid) for count, n in counts]


@pytest.mark.parametrize(
    ("successes", "expected"),  # of 1,000 episodes: (min_steps, max_useful_steps)
    [
        ({1: 100, 2: 500, 5: 950, 10: 985, 50: 990}, (5, 10)),
        ({1: 980, 2: 985, 5: 990}, (1, 1)),
        ({1: 950, 2: 100, 5: 920, 10: 990}, (5, 10)),  # a lucky 1 below an unusable 2
        ({1: 985, 2: 500, 5: 990}, (5, 5)),
        ({1: 500, 2: 990, 5: 920, 10: 990}, (2, 10)),  # a lucky 2 below a 5 that is not useful
        ({1: 100, 2: 990, 5: 990, 10: 920}, (2, 2)),  # a bad one at the end is not asked for
        ({1: 990, 2: 100, 5: 930}, (1, 1)),  # what is usable above the useful ones neither
        ({10: 500}, (10, 10)),
    ],
)
def test_the_steps_of_one_pair(successes, expected):
    cells = [cell(n, of=1000, num_steps=count) for count, n in successes.items()]
    assert choose_pair(cells) == Choice("ddim", "trailing", *expected)
    assert choose_pair(cells[::-1]) == Choice("ddim", "trailing", *expected)


def test_a_count_that_is_worse_by_chance_only_is_useful():
    cells = pair("ddim", "trailing", 100, 294, 295, 300)  # 2% below the best, 6 to 0: p = 0.03
    assert choose_pair(cells) == Choice("ddim", "trailing", 2, 2)


@pytest.mark.parametrize("success", [0.90, 0.95, 0.97, 0.99])
def test_chance_alone_changes_neither_pair_nor_steps(success):
    """Success is the same with every pair and flat from 3 steps, and 300 episodes are noisy.

    An episode's outcome in two cells correlates by 0.5: with probability sqrt(0.5) a cell takes the
    draw that all cells of this episode share, otherwise its own.
    """
    rng = np.random.default_rng(0)
    counts = (1, 2, 3, 4, 5, 7, 10, 15, 25)
    ways = [
        Sampling(n, sampler, grid)
        for sampler in ("ddim", "dpmpp_2m")
        for grid in ("trailing", "linspace", "logsnr")
        for n in counts
    ]
    truth = np.array([success * {1: 0.3, 2: 0.6}.get(way.num_steps, 1) for way in ways])
    runs, right = 30, 0
    for _ in range(runs):
        shares = rng.random((len(ways), 300)) < np.sqrt(0.5)
        draws = np.where(shares, rng.random(300), rng.random((len(ways), 300)))
        ends = np.where(draws < truth[:, None], "asked", "timeout")
        cells = [Cell(way, "known", 100, tuple(e)) for way, e in zip(ways, ends, strict=True)]
        right += choose_pair(cells) == Choice("ddim", "trailing", 3, 3)
    assert right >= 0.9 * runs


def test_the_pair_with_the_fewest_useful_steps_is_chosen():
    cells = [
        *pair("ddim", "trailing", 100, 200, 280, 300),
        *pair("dpmpp_2m", "logsnr", 100, 280, 298, 299),
        *pair("dpmpp_2m", "trailing", 100, 200, 290, 300),
    ]
    assert choose_pair(cells) == Choice("dpmpp_2m", "logsnr", 2, 5)


def test_ties_go_to_fewest_usable_steps():
    cells = [
        *pair("ddim", "trailing", 100, 200, 298, 300),
        *pair("dpmpp_2m", "logsnr", 100, 280, 298, 300),
    ]
    assert choose_pair(cells) == Choice("dpmpp_2m", "logsnr", 2, 5)


def test_a_tie_that_chance_explains_goes_to_the_first_listed():
    first = pair("ddim", "trailing", 100, 200, 296, 297)
    assert choose_pair([*first, *pair("ddim", "logsnr", 100, 200, 299, 300)]).grid == "trailing"
    assert choose_pair([*first, *pair("ddim", "logsnr", 100, 200, 296, 297)]).grid == "trailing"


def test_few_steps_with_another_pair_must_be_more_than_chance():
    """2 steps are just worse than the best with one pair (9 to 0), and just not with the other."""
    first = pair("ddim", "trailing", 100, 291, 300, 300)
    assert choose_pair(first) == Choice("ddim", "trailing", 2, 5)
    other = pair("ddim", "logsnr", 100, 292, 300, 300)
    assert choose_pair(other + first) == Choice("ddim", "logsnr", 2, 2)
    assert choose_pair(first + other) == Choice("ddim", "trailing", 2, 5)


def test_a_tie_is_broken_by_a_clear_gain():
    cells = [cell(n, of=2000, num_steps=c) for c, n in zip(COUNTS, (0, 0, 1975, 1980), strict=True)]
    cells += [
        cell(n, of=2000, num_steps=c, grid="logsnr")
        for c, n in zip(COUNTS, (0, 0, 1998, 2000), strict=True)
    ]
    assert choose_pair(cells) == Choice("ddim", "logsnr", 5, 5)


def test_a_pair_that_is_bad_at_every_count_needs_few_steps_for_that_and_is_not_chosen():
    cells = [
        *pair("ddim", "trailing", 100, 200, 280, 300),
        *pair("ddim", "linspace", 250, 250, 250, 250),
    ]
    assert choose_pair(cells) == Choice("ddim", "trailing", 5, 10)


def test_when_success_falls_again_with_more_steps_these_are_not_asked_for():
    """Was a choice of 10 steps: the largest count tried was taken for good whatever it was."""
    assert choose_pair(pair("ddim", "trailing", 100, 300, 280, 280)).max_useful_steps == 2
    assert choose_pair(pair("ddim", "trailing", 100, 300, 300, 295)).max_useful_steps == 2


# ── the recommendation ───────────────────────────────────────────────────────────────────────────


def rows_of(latencies_s, tried=(1, 2, 10, 15), quick_looks=()):
    """Of what was tried, 2 .. 10 steps are chosen; a quick look has a median only."""
    return [
        *({"stage": "steps", "num_steps": n} for n in tried),
        {"stage": "chosen", "min_steps": 2, "max_useful_steps": 10},
        *(
            {
                "stage": "latency",
                "num_steps": n,
                "budget_s": 0.08,
                "samples": 5 if n in quick_looks else 10_000,
                "latency_p50_s": seconds if n in quick_looks else seconds / 2,
                "latency_quantile_s": None if n in quick_looks else seconds,
            }
            for n, seconds in latencies_s.items()
        ),
    ]


@pytest.mark.parametrize(
    ("latencies_s", "expected"),
    [
        (
            {2: 0.01, 10: 0.02, 40: 0.05},
            "max_useful_steps = 10 fits 80 ms with a miss rate of at most 0.001 on this machine: "
            "the 0.999 quantile of latency, of 10000 requests, is 20.0 ms. At least 40 would fit",
        ),
        ({2: 0.01, 10: 0.0201, 40: 0.1401}, "10000 requests, is 20.1 ms. Up to 24 would fit."),
        ({2: 0.01, 10: 0.1701}, "Only 5 of the 10 useful steps fit 80 ms with a miss rate of at"),
        ({2: 0.09, 10: 0.2}, "Not even min_steps = 2 fits 80 ms: it takes 90.0 ms or more."),
    ],
)
def test_the_recommendation_in_plain_english(latencies_s, expected):
    said = recommend(rows_of(latencies_s), miss_rate=1e-3)
    assert expected in said
    assert "rising" not in said


def test_where_there_are_scores_they_are_what_is_shown(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    how = {"sampler": "ddim", "grid": "trailing", "guidance_scale": 0.0}
    how["guidance_interval"] = (0.0, 1.0)
    seconds = ("latency_p50_s", "latency_quantile_s", "latency_max_s", "ping_p50_s")
    latency = {"num_steps": 10, "samples": 3, "backend": "onnx", "ping_quantile_s": 0.1}
    rows = [
        {"stage": "chosen", **how, "min_steps": 10, "max_useful_steps": 10},
        {"stage": "latency", **how, **latency, **dict.fromkeys(seconds, 0.1)},
    ]
    for scores, shown, word in (((), "25.0", "success"), ((0.5, 0.75, 0.75, 1.0), "75.0", "score")):
        ends = ("asked", "timeout", "timeout", "timeout")
        played = Cell(Sampling(10, "ddim", "trailing"), "known", 100, ends, scores, scores).row(
            ALPHA_BAR
        )
        mine = [*rows, *({"stage": stage, **played} for stage in ("guidance", "steps"))]
        by_w, by_steps, _ = tables_of(mine)
        where = tables_of([*mine, {"stage": "interval", **played}])[1]
        assert list(where.columns[0].cells) == ["0 .. 1"]
        assert list(where.columns[-1].cells) == ["chosen"]
        assert word in by_w.title
        assert list(by_w.columns[1].cells) == [f"{shown}%"]
        assert word in by_steps.title
        assert list(by_steps.columns[2].cells) == [shown]
        plot(mine, 0.08, 1e-3, tmp_path / "tune.png")
        for panel in figures[-1].axes[:2]:
            assert panel.lines[0].get_ydata().tolist() == [float(shown)]
            assert ("score" in panel.get_ylabel()) == bool(scores)


def test_counts_that_had_a_quick_look_only_are_taken_into_account():
    said = recommend(rows_of({2: 0.01, 10: 0.1701, 40: 0.6}, quick_looks=(10, 40)), 1e-3)
    assert "Only 5 of the 10 useful steps fit" in said
    said = recommend(rows_of({2: 0.13, 10: 0.17, 40: 0.6}, quick_looks=(2, 10, 40)), 1e-3)
    assert "Not even min_steps = 2 fits 80 ms: it takes 130.0 ms or more." in said


@pytest.mark.parametrize("slowest_s", [0.02, 0.17])
def test_who_stopped_while_success_was_rising_is_told(slowest_s):
    rows = rows_of({2: 0.01, 10: slowest_s}, tried=(1, 2, 10))
    expected = "still rising at 10, the largest count tried; run again with larger --num-steps."
    assert expected in recommend(rows, 1e-3)
    alone = rows_of({2: 0.01, 10: slowest_s}, tried=(10,))  # nothing is known of fewer
    assert "rising" not in recommend(alone, 1e-3)


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1}, "seed: expected 100 or more"),
        ({"budget_ms": 0.0}, "budget_ms: expected more than 0"),
        ({"miss_rate": 0.0}, "miss_rate: expected a share"),
        ({"num_steps": ()}, "num_steps: expected at least one"),
        ({"num_steps": (2, 2)}, "num_steps: expected each once"),
        ({"num_steps": (0, 2)}, "num_steps, episodes: expected at least 1"),
        ({"grid": ("trailing", "leading")}, "grid: expected some of trailing.*'leading'"),
        ({"sampler": ("ddpm_beta",)}, "sampler: expected some of ddim.*'ddpm_beta'"),
        ({"sampler": ("dpmpp_2m",), "grid": ("linspace",)}, "sampler, grid: expected a pair"),
        ({"guidance_scale": (0.0, -1.0)}, "guidance_scale: expected .*ignores the words.*got -1"),
        ({"guidance_scale": (float("nan"),)}, "guidance_scale: expected finite"),
        ({"phrasings": "unseen"}, r"phrasings: expected .*'unseen' \(for reports\)"),
    ],
)
def test_bad_options_are_refused_by_name(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        TuneConfig(tmp_path, **fields)


def test_only_what_a_manifest_may_name_is_tried(tmp_path):
    pairs = TuneConfig(tmp_path).pairs
    assert pairs[0] == ("ddim", "trailing")
    assert set(pairs) == {
        *(("ddim", grid) for grid in ("trailing", "linspace", "logsnr")),
        *(("dpmpp_2m", grid) for grid in ("trailing", "logsnr")),
    }


def test_phrasings_that_do_not_exist_are_refused_before_anything_is_played(desk, monkeypatch):
    monkeypatch.setattr(RobotPolicy, "play", lambda *_: pytest.fail("played"))
    with pytest.raises(ValueError, match=r"phrasings: expected known.*got 'nosuch'"):
        tune.main(small(desk, phrasings="nosuch"))


def test_another_robot_s_policy_is_not_played_at_the_desk(tmp_path):
    save_checkpoint(tmp_path, make_policy())
    with pytest.raises(ValueError, match=r"expected a policy of a robot.*'tiny'.*your own robot"):
        tune.main(TuneConfig(tmp_path, out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.fixture
def desk(tmp_path):
    """A copy of the desk's checkpoint whose manifest says what tuning would never find."""
    folder = tmp_path / "desk"
    shutil.copytree(DESK, folder)
    manifest = checkpoint.read_manifest(folder)
    strange = dataclasses.replace(manifest, min_steps=77, max_useful_steps=88)
    checkpoint.write_manifest(folder, strange)
    return folder


def small(desk, **fields):
    options = {"num_steps": (1, 2), "sampler": ("ddim",), "grid": ("trailing", "logsnr")}
    options |= {"guidance_scale": (0.0, 1.0), "episodes": 1}
    options |= {"miss_rate": 0.1, "budget_ms": 2000.0}  # so that any machine is fast enough
    return TuneConfig(desk, out=desk.parent / "out", **options | fields)


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["quality", "latency"])
def test_an_interrupted_run_leaves_the_manifest_as_it_was(desk, monkeypatch, where):
    played = [Ending("asked")] * 6
    monkeypatch.setattr(RobotPolicy, "play", interrupt if where == "quality" else lambda *_: played)
    monkeypatch.setattr(tune.latency, "measure", interrupt)
    before = {path.name: path.read_bytes() for path in desk.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        tune.main(small(desk))
    assert {path.name: path.read_bytes() for path in desk.iterdir()} == before


def rows_on_disk(desk, name="tune.json"):
    return json.loads((desk.parent / "out" / name).read_text())["rows"]


def test_an_interrupted_run_leaves_what_was_measured_on_disk(desk, monkeypatch):
    played = iter([[Ending("asked")] * 6] * 5)

    def play(*_):
        return next(played, None) or interrupt()

    monkeypatch.setattr(RobotPolicy, "play", play)
    with pytest.raises(KeyboardInterrupt):
        tune.main(small(desk))
    rows = rows_on_disk(desk, "tune.partial.json")
    assert [row["stage"] for row in rows] == ["guidance"] * 4 + ["steps"]


def test_the_guidance_scale_is_chosen_with_what_is_preferred_not_with_the_old_manifest_s(
    desk, monkeypatch
):
    asked = []

    def play(_, specs, sampling, *__):
        asked.append((sampling.sampler, sampling.grid))
        return [Ending("asked")] * len(specs)

    monkeypatch.setattr(RobotPolicy, "play", play)
    monkeypatch.setattr(tune, "measure_latency", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune.main(small(desk, sampler=("dpmpp_2m", "ddim"), grid=("linspace", "logsnr")))
    assert asked[0] == ("dpmpp_2m", "logsnr")  # the first pair that can be served
    assert checkpoint.read_manifest(desk).defaults.sampler == "ddim"


def fast(_, cases, *__, **___):
    return Latencies({case: [0.01] * 1000 for case in cases}, [0.001] * 1000)


def test_a_network_trained_meanwhile_is_not_blessed(desk, monkeypatch):
    monkeypatch.setattr(RobotPolicy, "play", lambda _, specs, *__: [Ending("asked")] * len(specs))

    def retrain(*args, **fields):
        path = desk / checkpoint.WEIGHTS
        path.write_bytes(path.read_bytes() + b"other")
        return fast(*args, **fields)

    monkeypatch.setattr(tune.latency, "measure", retrain)
    before = (desk / checkpoint.MANIFEST).read_bytes()
    with pytest.raises(checkpoint.CheckpointError, match=r"model\.safetensors: changed since"):
        tune.main(small(desk))
    assert (desk / checkpoint.MANIFEST).read_bytes() == before
    assert rows_on_disk(desk, "tune.partial.json")[-1]["stage"] == "recommendation"


def test_only_the_policy_is_copied_for_the_latency_stage_and_few_counts_are_measured(
    desk, monkeypatch
):
    (desk / "training").mkdir()
    (desk / "training" / "huge").write_text("a training set")
    monkeypatch.setattr(RobotPolicy, "play", lambda _, specs, *__: [Ending("asked")] * len(specs))
    served, measured = [], []

    def serve(folder):
        served.append({path.name for path in folder.iterdir()})
        return running_server(folder)

    def measure(address, cases, *_, samples, **__):
        measured.append(([case.num_steps for case in cases], samples))
        return fast(address, cases)

    monkeypatch.setattr(tune, "running_server", serve)
    monkeypatch.setattr(tune.latency, "measure", measure)
    tune.main(small(desk, num_steps=(1, 2, 3), miss_rate=1e-3))
    assert served == [{checkpoint.MANIFEST, *checkpoint.read_manifest(desk).files}]
    assert measured == [([1, 4, 20], 10_000)]  # min and useful, 4 and 20 times that


@pytest.mark.realtime
def test_a_small_run_writes_manifest_rows_samples_and_a_plot(desk):
    tune.main(small(desk))
    rows = rows_on_disk(desk)
    by_stage = {}
    for row in rows:
        by_stage.setdefault(row["stage"], []).append(row)
    assert [(r["guidance_scale"], r["phrasings"], r["seed"]) for r in by_stage["guidance"]] == [
        (0.0, "known", 100),
        (0.0, "validation", 101),
        (1.0, "known", 100),
        (1.0, "validation", 101),
    ]
    assert [(r["grid"], r["num_steps"]) for r in by_stage["steps"]] == [
        ("trailing", 1),
        ("trailing", 2),
        ("logsnr", 1),
        ("logsnr", 2),
    ]
    (chosen,) = by_stage["chosen"]
    manifest = checkpoint.read_manifest(desk)
    assert (manifest.min_steps, manifest.max_useful_steps) != (77, 88)
    for name in ("min_steps", "max_useful_steps"):
        assert getattr(manifest, name) == chosen[name]
    for name, value in vars(manifest.defaults).items():
        assert json.loads(json.dumps(value)) == chosen[name]
    mine = [r for r in by_stage["steps"] if r["grid"] == manifest.defaults.grid]
    assert manifest.success_by_steps == tuple(
        {name: value for name, value in row.items() if name != "stage"} for row in mine
    )
    useful = manifest.max_useful_steps
    counts = [row["num_steps"] for row in by_stage["latency"]]
    assert {manifest.min_steps, useful, 4 * useful, 20 * useful} <= set(counts)
    for row in by_stage["latency"]:
        assert row["samples"] == 100
        assert 0 < row["latency_p50_s"] <= row["latency_quantile_s"] <= row["latency_max_s"]
    (recommendation,) = by_stage["recommendation"]
    assert f"max_useful_steps = {useful}" in recommendation["recommendation"]
    assert (desk.parent / "out" / "tune.png").stat().st_size > 10_000
    assert (desk.parent / "out" / "tune_samples.csv").exists()
    checkpoint.load(desk)  # hashes and all


# ── the planner obeys ────────────────────────────────────────────────────────────────────────────


def test_where_guidance_acts_is_chosen_by_quality_and_then_by_rows():
    def chosen(asked):
        tried = [cell(n, guidance_scale=1.0, guidance_interval=where) for where, n in asked.items()]
        return choose_interval(tried, unguided, ALPHA_BAR)

    unguided = []
    assert chosen({(0.0, 1.0): 291, (0.5, 1.0): 290}) == (0.5, 1.0)
    assert chosen({(0.0, 1.0): 291, (0.5, 1.0): 240}) == (0.0, 1.0)
    assert chosen({(0.0, 1.0): 240, (0.5, 1.0): 240, (0.0, 0.9): 290}) == (0.0, 0.9)
    # what costs less than guidance everywhere must still be worth more than none
    unguided = [cell(282, guidance_scale=0.0)]
    assert chosen({(0.0, 1.0): 291, (0.5, 1.0): 284}) == (0.0, 1.0)
    assert chosen({(0.0, 1.0): 291, (0.5, 1.0): 290}) == (0.5, 1.0)


def test_where_it_acts_is_tried_only_if_guidance_is_chosen(desk, monkeypatch):
    played = []

    def play(_, specs, sampling, *__):
        played.append(sampling)
        won = "asked" if sampling.guidance_scale else "timeout"
        return [Ending(won if n % 2 else "asked") for n in range(len(specs))]

    monkeypatch.setattr(RobotPolicy, "play", play)
    monkeypatch.setattr(tune.latency, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune.main(small(desk, episodes=4, guidance_interval=((0.0, 1.0), (0.0, 0.9))))
    rows = rows_on_disk(desk, "tune.partial.json")
    intervals = [row["guidance_interval"] for row in rows if row["stage"] == "interval"]
    assert intervals == [[0.0, 1.0]] * 2 + [[0.0, 0.9]] * 2
    (chosen,) = [row for row in rows if row["stage"] == "chosen"]
    assert (chosen["guidance_scale"], chosen["guidance_interval"]) == (1.0, [0.0, 0.9])
    assert {how.guidance_interval for how in played[-4:]} == {(0.0, 0.9)}


WHERE = (0.3, 0.95)


@pytest.fixture(scope="module", params=["torch", "onnx"])
def tuned_server(request, tmp_path_factory):
    """A server of a manifest as tuning may leave it."""
    folder = tmp_path_factory.mktemp("tuned")
    manifest = save_checkpoint(folder, make_policy(), min_steps=3, max_useful_steps=9)
    defaults = checkpoint.SamplingDefaults(
        sampler="dpmpp_2m", grid="logsnr", guidance_scale=0.5, guidance_interval=WHERE
    )
    checkpoint.write_manifest(folder, dataclasses.replace(manifest, defaults=defaults))
    with running_server(folder, "--backend", request.param) as server:
        yield server


def test_the_planner_obeys_the_manifest(tuned_server):
    state = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    policy = make_policy()
    with PolicyClient(tuned_server.address) as client:
        metadata = client.metadata(timeout_s=5.0)
        assert (metadata.min_steps, metadata.max_useful_steps) == (3, 9)
        assert (metadata.defaults.sampler, metadata.defaults.grid) == ("dpmpp_2m", "logsnr")
        assert (metadata.defaults.eta, metadata.defaults.guidance_scale) == (0.0, 0.5)

        def act(**options):
            return client.act(
                {"state": state}, "open the drawer", budget_s=2.0, seed=5, timeout_s=5.0, **options
            )

        chunk = act()
        expected = make_timesteps("logsnr", 9, policy.diffusion.alpha_bar)
        assert chunk.timesteps == tuple(expected)
        here = Sampling(9, "dpmpp_2m", "logsnr", guidance_scale=0.5, guidance_interval=WHERE)
        assert 9 < here.nfe(policy.diffusion.alpha_bar) < 18
        assert chunk.nfe == here.nfe(policy.diffusion.alpha_bar)
        assert (chunk.num_steps, chunk.guidance_scale) == (9, 0.5)
        offline = sample_chunks(
            policy,
            {"state": state[None]},
            InstructionEncoder().encode(["open the drawer"]),
            here,
            seeds=[5],
        )[0]
        np.testing.assert_allclose(chunk.actions, offline, atol=1e-4)
        for other in ({"sampler": "ddim"}, {"guidance_interval": EVERYWHERE}):
            differs = sample_chunks(
                policy,
                {"state": state[None]},
                InstructionEncoder().encode(["open the drawer"]),
                dataclasses.replace(here, **other),
                seeds=[5],
            )[0]
            assert np.abs(chunk.actions - differs).max() > 1e-3  # or the test could not fail
        with pytest.raises(InvalidRequestError, match=r"eta.*dpmpp_2m.*0 only"):
            act(eta=0.5)
        assert act(eta=0.0).num_steps == 9
