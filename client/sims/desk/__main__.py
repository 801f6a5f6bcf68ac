"""Command line of the desk: record demonstrations, or look at an expert at work."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from client.sims.desk.experts import expert_action
from client.sims.desk.record import record, save
from client.sims.desk.render import Camera, caption, film, save_pictures
from client.sims.desk.simulation import Desk
from client.sims.desk.spec import TASKS


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m client.sims.desk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="record expert demonstrations to a file")
    recording.add_argument("--out", type=Path, required=True, help="an .npz file")
    recording.add_argument("--episodes", type=int, required=True)
    recording.add_argument("--seed", type=int, required=True)
    recording.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    rendering = commands.add_parser("render", help="draw an expert doing a task")
    rendering.add_argument("--out", type=Path, required=True, help="a .png or .gif file")
    rendering.add_argument("--task", choices=TASKS, required=True)
    rendering.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    if args.command == "record":
        save(args.out, record(args.episodes, args.seed, args.workers))
    else:
        render(args.out, args.task, args.seed)


def render(out: Path, task: str, seed: int) -> None:
    """Draw one episode of an expert."""
    desk = Desk()
    desk.reset(desk.sample_start(np.random.default_rng(seed)))
    with Camera(desk) as camera:
        pictures = film(desk, camera, task, lambda desk: expert_action(task, desk))
        save_pictures(out, [caption(picture, task.replace("_", " ")) for picture in pictures])


if __name__ == "__main__":
    main()
