"""What episodes came to: shares of outcomes and, for robots that have them, mean scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.episodes import Ending, EpisodeSpec
from benchmarks.statistics import bootstrap_interval, wilson_interval


def right_and_wrong(
    specs: Sequence[EpisodeSpec], endings: Sequence[Ending]
) -> tuple[list[float], list[float]]:
    """Scores by episode: of the task that was asked for, and the best of the others.

    Both are empty if the robot has outcomes only.
    """
    right, wrong = [], []
    for spec, ending in zip(specs, endings, strict=True):
        if ending.scores:
            right.append(ending.scores[spec.task])
            wrong.append(max(score for task, score in ending.scores.items() if task != spec.task))
    return right, wrong


def score_fields(specs: Sequence[EpisodeSpec], endings: Sequence[Ending]) -> dict[str, Any]:
    """Mean scores of some episodes, for a row; empty if the robot has outcomes only.

    Args:
        specs: what was asked.
        endings: of the same episodes, at least one.

    Returns:
        score and score_interval: how well the asked task was done, the mean and its 95% interval;
        wrong_score and wrong_score_interval: likewise how well another one was done, the best of
        them, until the same episodes ended. A policy that ignores words does both equally well.
    """
    right, wrong = right_and_wrong(specs, endings)
    if not right:
        return {}
    return {
        "score": float(np.mean(right)),
        "score_interval": bootstrap_interval(right),
        "wrong_score": float(np.mean(wrong)),
        "wrong_score_interval": bootstrap_interval(wrong),
    }


def success_fields(specs: Sequence[EpisodeSpec], endings: Sequence[Ending]) -> dict[str, Any]:
    """What a sweep says of some episodes: share of successes, of opposites, and mean scores."""
    outcomes = [ending.outcome for ending in endings]
    asked = outcomes.count("asked")
    return {
        "episodes": len(outcomes),
        "success_rate": asked / len(outcomes),
        "success_interval": wilson_interval(asked, len(outcomes)),
        "opposite_rate": outcomes.count("opposite") / len(outcomes),
        **score_fields(specs, endings),
    }


def quality_of(row: dict[str, Any]) -> tuple[str, float, tuple[float, float]]:
    """What a row of episodes is judged by: ("score" or "success", its value, its 95% interval)."""
    if "score" in row:
        return "score", row["score"], row["score_interval"]
    return "success", row["success_rate"], row["success_interval"]
