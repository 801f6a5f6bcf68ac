"""Animations of simulated robots: the pictures of an episode, captions, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from client.sims.simulation import Simulation

SimulationT = TypeVar("SimulationT", bound=Simulation[Any])
Picture = npt.NDArray[np.uint8]

_CAPTION_PX = 16


def film(
    simulation: SimulationT,
    task: str,
    drive: Callable[[SimulationT], npt.NDArray[np.float32]],
    look: Callable[[SimulationT], Picture],
    *,
    ticks_per_frame: int,
    after_frames: int,
) -> Iterator[Picture]:
    """Play the episode that `simulation` was reset to, and give a picture every few ticks.

    Args:
        simulation: what is filmed.
        task: the episode is over when its outcome is known.
        drive: looks at the simulation and gives the next action: an expert, or a policy.
        look: takes the pictures, uint8 [height, width, 3].
        ticks_per_frame: control ticks between two pictures.
        after_frames: pictures once it is over, so that the end can be seen.
    """
    yield look(simulation)
    while after_frames > 0:
        for _ in range(ticks_per_frame):
            simulation.step(drive(simulation))
        yield look(simulation)
        after_frames -= simulation.outcome(task) is not None


def caption(picture: Picture, text: str) -> Picture:
    """The picture with `text` written at its lower edge."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=_CAPTION_PX)
    at = (image.width / 2, image.height - _CAPTION_PX)
    draw.text(at, text, font=font, anchor="mm", fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def save_pictures(path: Path, pictures: list[Picture], frame_s: float) -> None:
    """Write the last picture (.png) or all of them, one every `frame_s` (.gif).

    Raises:
        ValueError: another ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(picture) for picture in pictures]
    match path.suffix:
        case ".png":
            images[-1].save(path)
        case ".gif":
            small = [image.quantize(96, dither=Image.Dither.NONE) for image in images]
            small[0].save(
                path,
                save_all=True,
                append_images=small[1:],
                duration=round(1000 * frame_s),
                loop=0,
            )
        case _:
            msg = f"{path}: expected a name that ends in .png or .gif"
            raise ValueError(msg)
