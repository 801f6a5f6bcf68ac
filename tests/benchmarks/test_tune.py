"""Which step counts are called useful and usable."""

import pytest

from benchmarks.tune import TuneConfig, choose


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


def test_report_seeds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="seed: expected 100 or more"):
        TuneConfig(tmp_path, seed=1)
