"""`python -m benchmarks NAME …`: one measurement each, results as JSON and plots."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from benchmarks import (
    budget,
    deadlines,
    eta,
    film,
    guidance,
    hog,
    hostile,
    hygiene,
    interval,
    load,
    logsnr,
    networks,
    precision,
    soak,
    speed,
    steps,
    success,
    swaps,
    timeline,
    transport,
    tune,
)
from benchmarks.budget import BudgetConfig
from benchmarks.deadlines import DeadlinesConfig
from benchmarks.eta import EtaConfig
from benchmarks.film import FilmConfig
from benchmarks.guidance import GuidanceConfig
from benchmarks.hog import HogConfig
from benchmarks.hostile import HostileConfig
from benchmarks.hygiene import HygieneConfig
from benchmarks.interval import IntervalConfig
from benchmarks.load import LoadConfig
from benchmarks.logsnr import LogsnrConfig
from benchmarks.networks import NetworksConfig
from benchmarks.precision import PrecisionConfig
from benchmarks.soak import SoakConfig
from benchmarks.speed import SpeedConfig
from benchmarks.steps import StepsConfig
from benchmarks.success import SuccessConfig
from benchmarks.swaps import SwapsConfig
from benchmarks.timeline import TimelineConfig
from benchmarks.transport import TransportConfig
from benchmarks.tune import TuneConfig
from client import PolicyError

_MAIN: dict[type[Any], Callable[[Any], None]] = {
    BudgetConfig: budget.main,
    DeadlinesConfig: deadlines.main,
    EtaConfig: eta.main,
    FilmConfig: film.main,
    GuidanceConfig: guidance.main,
    HogConfig: hog.main,
    HostileConfig: hostile.main,
    HygieneConfig: hygiene.main,
    IntervalConfig: interval.main,
    LoadConfig: load.main,
    LogsnrConfig: logsnr.main,
    NetworksConfig: networks.main,
    PrecisionConfig: precision.main,
    SoakConfig: soak.main,
    SpeedConfig: speed.main,
    StepsConfig: steps.main,
    SuccessConfig: success.main,
    SwapsConfig: swaps.main,
    TimelineConfig: timeline.main,
    TransportConfig: transport.main,
    TuneConfig: tune.main,
}


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
            HogConfig,
            subcommand("hog", description="One fast robot beside a hog that comes and goes."),
        ]
        | Annotated[
            HostileConfig,
            subcommand("hostile", description="One robot beside a hostile client."),
        ]
        | Annotated[
            HygieneConfig,
            subcommand("hygiene", description="Whether the server's real-time measures help."),
        ]
        | Annotated[
            IntervalConfig,
            subcommand("interval", description="Guidance at some noise levels only."),
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
            NetworksConfig,
            subcommand("networks", description="What networks cost here, and what they achieve."),
        ]
        | Annotated[
            PrecisionConfig,
            subcommand("precision", description="What int8 weights gain, and what they change."),
        ]
        | Annotated[
            SoakConfig,
            subcommand("soak", description="All that can go wrong, at once: lost, or unsafe?"),
        ]
        | Annotated[
            SpeedConfig,
            subcommand("speed", description="Steps and requests beside floor and baselines."),
        ]
        | Annotated[
            StepsConfig,
            subcommand("steps", description="Quality over inference time, every sampler."),
        ]
        | Annotated[
            SuccessConfig, subcommand("success", description="Task success in simulated time.")
        ]
        | Annotated[
            SwapsConfig,
            subcommand("swaps", description="What robots notice while models are swapped."),
        ]
        | Annotated[
            TimelineConfig,
            subcommand("timeline", description="Steps and latency while robots come and go."),
        ]
        | Annotated[
            TransportConfig,
            subcommand("transport", description="Round trips beside openpi's and bare pyzmq's."),
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
        _MAIN[type(config)](config)
    except (OSError, ValueError, RuntimeError, PolicyError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
