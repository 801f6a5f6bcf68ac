"""Which way of sampling is chosen, what the manifest then says, and that the planner obeys it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from benchmarks import tune
from benchmarks.choices import (
    Cell,
    Choice,
    choose,
    choose_guidance,
    choose_pair,
    first_unless_better,
    paired_p_value,
    recommend,
)
from benchmarks.desk_policy import DeskPolicy
from benchmarks.server_process import running_server
from benchmarks.tune import TuneConfig
from client import InvalidRequestError, PolicyClient
from models import checkpoint
from models.grids import make_timesteps
from models.instruction_encoder import InstructionEncoder
from models.sampling import Sampling, sample_chunks
from tests.policies import make_policy, save_checkpoint

DESK = checkpoint.PRETRAINED / "desk"


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({1: 0.1, 2: 0.5, 5: 0.95, 10: 0.985, 50: 0.99}, (5, 10)),
        ({1: 0.98, 2: 0.985, 5: 0.99}, (1, 1)),
        ({1: 0.95, 2: 0.1, 5: 0.92, 10: 0.99}, (5, 10)),  # a lucky 1 below an unusable 2
        ({1: 0.985, 2: 0.5, 5: 0.99}, (5, 5)),
        ({1: 0.5, 2: 0.99, 5: 0.92, 10: 0.99}, (2, 10)),  # a lucky 2 below a 5 that is not useful
        ({10: 0.5}, (10, 10)),
    ],
)
def test_choose(rates, expected):
    rows = [{"num_steps": n, "success_rate": r} for n, r in rates.items()]
    assert choose(rows) == expected
    assert choose(rows[::-1]) == expected


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
    assert first_unless_better({"old": won(280), "a": won(295), "b": won(299)}) == "b"
    assert first_unless_better({"old": won(295), "new": won(280)}) == "old"


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


# ── guidance scale ───────────────────────────────────────────────────────────────────────────────


def cell(successes, of=300, phrasings="known", **sampling):
    sampling = {"num_steps": 5, **sampling}
    ends = tuple("asked" if ok else "timeout" for ok in won(successes, of))
    return Cell(Sampling(**sampling), phrasings, 100, ends)


def test_guidance_that_helps_by_chance_is_not_paid_for():
    cells = [cell(n, guidance_scale=w) for w, n in {3.0: 298, 0.5: 299, 0.0: 297}.items()]
    assert choose_guidance(cells) == 0.0


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


def test_when_success_falls_again_with_more_steps_the_largest_counts_decide():
    cells = pair("ddim", "trailing", 100, 300, 280, 280)
    assert choose_pair(cells) == Choice("ddim", "trailing", 2, 10)


# ── the recommendation ───────────────────────────────────────────────────────────────────────────

CHOICE = Choice("ddim", "trailing", min_steps=2, max_useful_steps=10)


@pytest.mark.parametrize(
    ("latencies_s", "expected"),
    [
        (
            {2: 0.01, 10: 0.02, 40: 0.05},
            "max_useful_steps = 10 fits 80 ms with a miss rate of at most 0.001 on this machine: "
            "the 0.999 quantile of latency is 20.0 ms. At least 40 would fit",
        ),
        ({2: 0.01, 10: 0.0201, 40: 0.1401}, "quantile of latency is 20.1 ms. Up to 24 would fit."),
        ({2: 0.01, 10: 0.1701}, "Only 5 of the 10 useful steps fit 80 ms with a miss rate of at"),
        ({2: 0.05}, "Only 2 of the 10 useful steps fit 80 ms"),
        ({2: 0.09, 10: 0.2}, "Not even min_steps = 2 fits 80 ms: it takes 90.0 ms or more."),
    ],
)
def test_the_recommendation_in_plain_english(latencies_s, expected):
    assert expected in recommend(CHOICE, latencies_s, budget_s=0.08, miss_rate=1e-3)


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
    ],
)
def test_bad_options_are_refused_by_name(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        TuneConfig(tmp_path, **fields)


def test_another_robot_s_policy_is_not_played_at_the_desk(tmp_path):
    save_checkpoint(tmp_path, make_policy())
    with pytest.raises(ValueError, match=r"expected a policy of the desk.*'tiny'.*your own robot"):
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
    options |= {"guidance_scale": (0.0, 1.0), "episodes": 1, "miss_rate": 0.02}
    return TuneConfig(desk, out=desk.parent / "out", **options | fields)


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["quality", "latency"])
def test_an_interrupted_run_leaves_the_manifest_as_it_was(desk, monkeypatch, where):
    played = ["asked"] * 6
    monkeypatch.setattr(DeskPolicy, "play", interrupt if where == "quality" else lambda *_: played)
    monkeypatch.setattr(tune.latency, "measure", interrupt)
    before = {path.name: path.read_bytes() for path in desk.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        tune.main(small(desk))
    assert {path.name: path.read_bytes() for path in desk.iterdir()} == before


@pytest.mark.realtime
def test_a_small_run_writes_manifest_rows_samples_and_a_plot(desk):
    tune.main(small(desk))
    rows = json.loads((desk.parent / "out" / "tune.json").read_text())["rows"]
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
        assert value == chosen[name]
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
    assert f"max_useful_steps = {useful}" in chosen["recommendation"]
    assert (desk.parent / "out" / "tune.png").stat().st_size > 10_000
    assert (desk.parent / "out" / "tune_samples.csv").exists()
    checkpoint.load(desk)  # hashes and all


# ── the planner obeys ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=["torch", "onnx"])
def tuned_server(request, tmp_path_factory):
    """A server of a manifest as tuning may leave it."""
    folder = tmp_path_factory.mktemp("tuned")
    manifest = save_checkpoint(folder, make_policy(), min_steps=3, max_useful_steps=9)
    defaults = checkpoint.SamplingDefaults(sampler="dpmpp_2m", grid="logsnr", guidance_scale=0.5)
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
        assert (chunk.num_steps, chunk.nfe, chunk.guidance_scale) == (9, 18, 0.5)
        offline = sample_chunks(
            policy,
            {"state": state[None]},
            InstructionEncoder().encode(["open the drawer"]),
            Sampling(9, "dpmpp_2m", "logsnr", guidance_scale=0.5),
            seeds=[5],
        )[0]
        np.testing.assert_allclose(chunk.actions, offline, atol=1e-4)
        ddim = sample_chunks(
            policy,
            {"state": state[None]},
            InstructionEncoder().encode(["open the drawer"]),
            Sampling(9, "ddim", "logsnr", guidance_scale=0.5),
            seeds=[5],
        )[0]
        assert np.abs(chunk.actions - ddim).max() > 1e-3  # or the test could not fail
        with pytest.raises(InvalidRequestError, match=r"eta.*dpmpp_2m.*0 only"):
            act(eta=0.5)
        assert act(eta=0.0).num_steps == 9
