"""Command line of the desk: record demonstrations, or look at an expert at work."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from client.sims.desk.experts import expert_action
from client.sims.desk.record import record, save
from client.sims.desk.render import (
    FILM_AFTER_FRAMES,
    FILM_TICKS,
    OVER_SHOULDER,
    Camera,
    NoDisplayError,
)
from client.sims.desk.simulation import Desk
from client.sims.desk.spec import CONTROL_PERIOD_S, TASKS
from client.sims.desk_image.simulation import DeskImage
from client.sims.film import caption, film, save_pictures

_ROBOTS: dict[str, type[Desk]] = {"desk": Desk, "desk_image": DeskImage}


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m client.sims.desk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="record expert demonstrations to a file")
    recording.add_argument("--out", type=Path, required=True, help="an .npz file")
    recording.add_argument("--episodes", type=int, required=True)
    recording.add_argument("--seed", type=int, required=True)
    recording.add_argument(
        "--robot",
        choices=_ROBOTS,
        default="desk",
        help="what is observed: the state (default), or pictures of a camera",
    )
    recording.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    rendering = commands.add_parser("render", help="draw an expert doing a task")
    rendering.add_argument("--out", type=Path, required=True, help="a .png or .gif file")
    rendering.add_argument("--task", choices=TASKS, required=True)
    rendering.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    try:
        if args.command == "record":
            save(args.out, record(args.episodes, args.seed, args.workers, _ROBOTS[args.robot]))
        else:
            render(args.out, args.task, args.seed)
    except NoDisplayError as error:
        sys.exit(f"error: {error}")


def render(out: Path, task: str, seed: int) -> None:
    """Draw one episode of an expert."""
    desk = Desk()
    desk.reset(desk.sample_start(np.random.default_rng(seed)))
    with Camera(OVER_SHOULDER, width=640, height=480) as camera:
        shown = film(
            desk,
            task,
            lambda desk: expert_action(task, desk),
            camera.picture,
            ticks_per_frame=FILM_TICKS,
            after_frames=FILM_AFTER_FRAMES,
        )
        pictures = [caption(picture, task.replace("_", " ")) for picture in shown]
    save_pictures(out, pictures, FILM_TICKS * CONTROL_PERIOD_S)


if __name__ == "__main__":
    main()
