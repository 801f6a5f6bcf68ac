"""`python -m benchmarks NAME …`: one measurement each, results as JSON and plots."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro
from tyro.conf import subcommand

from benchmarks import deadlines, success
from benchmarks.deadlines import DeadlinesConfig
from benchmarks.success import SuccessConfig


def main() -> None:
    """Entry point."""
    config = tyro.cli(
        Annotated[
            DeadlinesConfig,
            subcommand("deadlines", description="Deadline misses by step count, in real time."),
        ]
        | Annotated[
            SuccessConfig, subcommand("success", description="Task success in simulated time.")
        ],
        prog="python -m benchmarks",
    )
    try:
        match config:
            case DeadlinesConfig():
                deadlines.main(config)
            case SuccessConfig():
                success.main(config)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
