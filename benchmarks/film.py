"""An animation of the desk doing what the served policy is told, for the README."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client.sims.desk.render import Camera, caption, film, save_pictures
from client.sims.desk.simulation import Desk
from client.sims.desk.spec import DESK_SPEC
from models import checkpoint
from models.instruction_encoder import InstructionEncoder
from models.sampling import sample_chunks

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
    manifest, policy = checkpoint.load(config.checkpoint)
    encoder = InstructionEncoder()
    desk = Desk()
    pictures: list[Any] = []
    with Camera(desk, width=320, height=240) as camera:
        for number, (task, words) in enumerate(INSTRUCTIONS):
            desk.reset(desk.sample_start(np.random.default_rng((config.seed, number))))
            embedding = encoder.encode([words])
            history: deque[npt.NDArray[np.float32]] = deque(maxlen=DESK_SPEC.obs_steps)
            chunk: list[npt.NDArray[np.float32]] = []

            def drive(
                desk: Desk,
                history: deque[npt.NDArray[np.float32]] = history,
                chunk: list[npt.NDArray[np.float32]] = chunk,
                embedding: npt.NDArray[np.float32] = embedding,
            ) -> npt.NDArray[Any]:
                state = desk.observation()["state"]
                history.extend([state] if history else [state] * DESK_SPEC.obs_steps)
                if desk.ticks % DESK_SPEC.exec_steps == 0:
                    chunk[:] = sample_chunks(
                        policy,
                        {"state": np.stack(history)[None]},
                        embedding,
                        num_steps=config.num_steps,
                        guidance_scale=manifest.defaults.guidance_scale,
                        eta=manifest.defaults.eta,
                        grid=manifest.defaults.grid,
                        seeds=[desk.ticks],
                    )[0]
                return chunk[desk.ticks % DESK_SPEC.exec_steps]

            shown = film(desk, camera, task, drive)
            pictures.extend(caption(picture, f"“{words}”") for picture in shown)
            sys.stderr.write(f"{words}: {desk.outcome(task)}\n")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    save_pictures(config.out, pictures)
    sys.stderr.write(f"wrote {config.out}\n")
