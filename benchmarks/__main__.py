"""`python -m benchmarks NAME …`: one measurement each, results as JSON and plots."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import tyro
from tyro.conf import subcommand

from benchmarks import budget, deadlines, eta, film, guidance, load, logsnr, steps, success, tune
from benchmarks.budget import BudgetConfig
from benchmarks.deadlines import DeadlinesConfig
from benchmarks.eta import EtaConfig
from benchmarks.film import FilmConfig
from benchmarks.guidance import GuidanceConfig
from benchmarks.load import LoadConfig
from benchmarks.logsnr import LogsnrConfig
from benchmarks.steps import StepsConfig
from benchmarks.success import SuccessConfig
from benchmarks.tune import TuneConfig
from client import PolicyError


def main() -> None:
    """Entry point."""
    config = tyro.cli(
        Annotated[
            BudgetConfig,
            subcommand("budget", description="Steps that fit a robot's period, and what they buy."),
        ]
        | Annotated[
            DeadlinesConfig,
            subcommand("deadlines", description="Deadline misses by step count, in real time."),
        ]
        | Annotated[
            EtaConfig, subcommand("eta", description="Quality and diversity by eta of DDIM.")
        ]
        | Annotated[
            FilmConfig, subcommand("film", description="An animation of the policy at work.")
        ]
        | Annotated[
            GuidanceConfig,
            subcommand("guidance", description="Adherence, quality and diversity by w."),
        ]
        | Annotated[
            LoadConfig,
            subcommand("load", description="How many robots a server carries, in real time."),
        ]
        | Annotated[
            LogsnrConfig,
            subcommand("logsnr", description="Choose the range of the uniform log-SNR grid."),
        ]
        | Annotated[
            StepsConfig,
            subcommand("steps", description="Quality over inference time, every sampler."),
        ]
        | Annotated[
            SuccessConfig, subcommand("success", description="Task success in simulated time.")
        ]
        | Annotated[
            TuneConfig,
            subcommand("tune", description="Choose steps, sampler, grid and w."),
        ],
        prog="python -m benchmarks",
    )
    # what a robot's operator wants to hear is here in the table
    logging.getLogger("client").setLevel(logging.ERROR)
    try:
        match config:
            case BudgetConfig():
                budget.main(config)
            case DeadlinesConfig():
                deadlines.main(config)
            case EtaConfig():
                eta.main(config)
            case FilmConfig():
                film.main(config)
            case GuidanceConfig():
                guidance.main(config)
            case LoadConfig():
                load.main(config)
            case LogsnrConfig():
                logsnr.main(config)
            case StepsConfig():
                steps.main(config)
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
