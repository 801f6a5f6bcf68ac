"""Animations of robots doing what the served policy is told, for README and docs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.episodes import Sample
from benchmarks.policy_choice import PolicyChoice
from benchmarks.robot_policy import RobotPolicy
from client.history import ObservationHistory
from client.sims.film import Picture, caption, film, save_pictures
from client.sims.simulation import Simulation
from client.specs import PolicySpec

_DESK = (
    ("drawer_open", "pull the drawer open, please"),
    ("lever_down", "can you press the handle down?"),
    ("faucet_left", "swing the tap over to the left"),
    ("faucet_right", "now turn the faucet to the right"),
    ("lever_up", "lift the lever up"),
    ("drawer_close", "shut the drawer"),
)
_PUSHT = (
    ("middle", "push the T to the middle"),
    ("lower_right", "push the T to the lower right"),
)


@dataclass(frozen=True, kw_only=True)
class FilmConfig(PolicyChoice):
    """What `python -m benchmarks film` takes.

    Attributes:
        out: a .gif or .png file.
        num_steps: denoising steps of every answer.
        seed: of the starts: at the desk a new one for each instruction, of Push-T the same one.
    """

    out: Path
    num_steps: int = 10
    seed: int = 3


@dataclass(frozen=True)
class _Script:
    """How a robot is filmed.

    Attributes:
        instructions: (task, words) of each episode.
        same_start: every episode begins alike, so that the words alone make the difference.
        look: takes a picture.
        ticks_per_frame: control ticks between two pictures.
        frame_s: how long each is shown.
        after_frames: pictures after an episode's end.
    """

    instructions: tuple[tuple[str, str], ...]
    same_start: bool
    look: Callable[[Any], Picture]
    ticks_per_frame: int
    frame_s: float
    after_frames: int


def _script(robot: str, closing: ExitStack) -> _Script:
    """Only the simulator of this robot is imported.

    Raises:
        ValueError: nobody has written one for it.
    """
    match robot:
        case "desk":
            from client.sims.desk.render import (  # noqa: PLC0415
                FILM_AFTER_FRAMES,
                FILM_TICKS,
                OVER_SHOULDER,
                Camera,
            )
            from client.sims.desk.spec import CONTROL_PERIOD_S  # noqa: PLC0415

            camera = closing.enter_context(Camera(OVER_SHOULDER, width=320, height=240))
            frame_s = FILM_TICKS * CONTROL_PERIOD_S
            return _Script(_DESK, False, camera.picture, FILM_TICKS, frame_s, FILM_AFTER_FRAMES)
        case "pusht":
            from client.sims.pusht_image.pictures import Painter  # noqa: PLC0415

            painter = Painter(side=256)
            return _Script(
                _PUSHT,
                same_start=True,
                look=lambda simulation: painter.paint(simulation.observation()["state"]),
                ticks_per_frame=2,
                frame_s=0.1,  # twice as fast as it was
                after_frames=10,
            )
        case _:
            msg = f"robot: expected desk or pusht, got {robot!r}"
            raise ValueError(msg)


def main(config: FilmConfig) -> None:
    """Play one episode for each instruction and write the pictures."""
    _, robot = config.read()
    pictures: list[Picture] = []
    with ExitStack() as closing:
        script = _script(robot.spec.task, closing)
        policy = RobotPolicy(config.folder)
        sample = policy.sample(policy.sampling)
        simulation = robot.simulation()
        for number, (task, words) in enumerate(script.instructions):
            rng = np.random.default_rng((config.seed, 0 if script.same_start else number))
            simulation.reset(simulation.sample_start(rng))
            shown = film(
                simulation,
                task,
                _drive(robot.spec, sample, words, config.num_steps),
                script.look,
                ticks_per_frame=script.ticks_per_frame,
                after_frames=script.after_frames,
            )
            pictures.extend(caption(picture, f"“{words}”") for picture in shown)
            sys.stderr.write(f"{words}: {simulation.outcome(task)}\n")
    save_pictures(config.out, pictures, script.frame_s)
    sys.stderr.write(f"wrote {config.out}\n")


def _drive(
    spec: PolicySpec, sample: Sample, words: str, num_steps: int
) -> Callable[[Simulation[Any]], npt.NDArray[np.float32]]:
    """The policy at the wheel, told `words`; every answer is there at once."""
    history = ObservationHistory(spec)
    chunk: list[npt.NDArray[np.float32]] = []

    def drive(simulation: Simulation[Any]) -> npt.NDArray[np.float32]:
        history.add(simulation.ticks, simulation.observation())
        if simulation.ticks % spec.exec_steps == 0:
            observation = {name: array[None] for name, array in history.stacked().items()}
            chunk[:] = sample(observation, [words], [simulation.ticks], num_steps)[0]
        return chunk[simulation.ticks % spec.exec_steps]

    return drive
