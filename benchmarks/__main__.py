"""`python -m benchmarks NAME …`: one measurement each, results as JSON and plots."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import tyro
from tyro.conf import subcommand

from benchmarks import deadlines, film, success, tune
from benchmarks.deadlines import DeadlinesConfig
from benchmarks.film import FilmConfig
from benchmarks.success import SuccessConfig
from benchmarks.tune import TuneConfig
from client import PolicyError


def main() -> None:
    """Entry point."""
    config = tyro.cli(
        Annotated[
            DeadlinesConfig,
            subcommand("deadlines", description="Deadline misses by step count, in real time."),
        ]
        | Annotated[
            FilmConfig, subcommand("film", description="An animation of the policy at work.")
        ]
        | Annotated[
            SuccessConfig, subcommand("success", description="Task success in simulated time.")
        ]
        | Annotated[
            TuneConfig,
            subcommand("tune", description="Choose min_steps and max_useful_steps."),
        ],
        prog="python -m benchmarks",
    )
    # what a robot's operator wants to hear is here in the table
    logging.getLogger("client").setLevel(logging.ERROR)
    try:
        match config:
            case DeadlinesConfig():
                deadlines.main(config)
            case FilmConfig():
                film.main(config)
            case SuccessConfig():
                success.main(config)
            case TuneConfig():
                tune.main(config)
    except (OSError, ValueError, RuntimeError, PolicyError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
