"""An animation of the desk doing what the served policy is told, for the README."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.episodes import Sample
from benchmarks.robot_policy import RobotPolicy
from client.history import ObservationHistory
from client.sims.desk.render import Camera, Drive, caption, film, save_pictures
from client.sims.desk.simulation import Desk
from client.sims.desk.spec import DESK_SPEC
from models import checkpoint

INSTRUCTIONS = (
    ("drawer_open", "pull the drawer open, please"),
    ("lever_down", "can you press the handle down?"),
    ("faucet_left", "swing the tap over to the left"),
    ("faucet_right", "now turn the faucet to the right"),
    ("lever_up", "lift the lever up"),
    ("drawer_close", "shut the drawer"),
)


@dataclass(frozen=True)
class FilmConfig:
    """What `python -m benchmarks film` takes.

    Attributes:
        out: a .gif or .png file.
        checkpoint: folder of the policy; the bundled one if not given.
        num_steps: denoising steps of every answer.
        seed: of the starts, a new one for each instruction.
    """

    out: Path
    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    num_steps: int = 10
    seed: int = 3


def main(config: FilmConfig) -> None:
    """Play one episode for each instruction and write the pictures."""
    policy = RobotPolicy(config.checkpoint)
    sample = policy.sample(policy.sampling)
    desk = Desk()
    pictures: list[Any] = []
    with Camera(desk, width=320, height=240) as camera:
        for number, (task, words) in enumerate(INSTRUCTIONS):
            desk.reset(desk.sample_start(np.random.default_rng((config.seed, number))))
            drive = _drive(sample, words, config.num_steps)
            shown = film(desk, camera, task, drive)
            pictures.extend(caption(picture, f"“{words}”") for picture in shown)
            sys.stderr.write(f"{words}: {desk.outcome(task)}\n")
    save_pictures(config.out, pictures)
    sys.stderr.write(f"wrote {config.out}\n")


def _drive(sample: Sample, words: str, num_steps: int) -> Drive:
    """The policy at the wheel, told `words`; every answer is there at once."""
    history = ObservationHistory(DESK_SPEC)
    chunk: list[npt.NDArray[np.float32]] = []

    def drive(desk: Desk) -> npt.NDArray[Any]:
        history.add(desk.ticks, desk.observation())
        if desk.ticks % DESK_SPEC.exec_steps == 0:
            observation = {name: array[None] for name, array in history.stacked().items()}
            chunk[:] = sample(observation, [words], [desk.ticks], num_steps)[0]
        return chunk[desk.ticks % DESK_SPEC.exec_steps]

    return drive
