"""Pictures and animations of the desk, drawn off screen.

On a machine without a display set MUJOCO_GL=egl (package libegl1) or MUJOCO_GL=osmesa (package
libosmesa6) before Python starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from client.sims.desk.simulation import Desk
from client.sims.desk.spec import CONTROL_PERIOD_S

Drive = Callable[[Desk], npt.NDArray[Any]]
"""Looks at the desk and gives the next action, float [4]: an expert, or a policy."""

TICKS_PER_FRAME = 4  # 20 frames a second of simulated time
_AFTER_FRAMES = 10
_CAPTION_PX = 16


class Camera:
    """Looks at one desk over the robot's right shoulder; close it, or use it as a context.

    Raises:
        RuntimeError: there is no display and MUJOCO_GL names no way to do without.
    """

    def __init__(self, desk: Desk, *, width: int = 640, height: int = 480) -> None:
        headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
        if headless and os.environ.get("MUJOCO_GL") not in {"egl", "osmesa"}:
            msg = (
                "no display to draw on: set MUJOCO_GL=egl or MUJOCO_GL=osmesa before Python starts "
                "(Debian packages libegl1, libosmesa6)"
            )
            raise RuntimeError(msg)
        self._desk = desk
        desk.model.vis.global_.offwidth = width
        desk.model.vis.global_.offheight = height
        self._renderer: Any = mujoco.Renderer(desk.model, height, width)
        self._view: Any = mujoco.MjvCamera()
        self._view.lookat = (0.0, 0.62, 0.10)
        self._view.distance = 1.45
        self._view.azimuth = 138.0
        self._view.elevation = -36.0

    def picture(self) -> npt.NDArray[np.uint8]:
        """What the desk looks like now: uint8 [height, width, 3]."""
        # mj_forward would move the warm start, and with it the episode that is being filmed
        mujoco.mj_kinematics(self._desk.model, self._desk.data)
        mujoco.mj_comPos(self._desk.model, self._desk.data)
        mujoco.mj_camlight(self._desk.model, self._desk.data)
        self._renderer.update_scene(self._desk.data, self._view)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0
        picture: npt.NDArray[np.uint8] = self._renderer.render().copy()
        return picture

    def close(self) -> None:
        """Free the drawing context."""
        self._renderer.close()

    def __enter__(self) -> Camera:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def film(desk: Desk, camera: Camera, task: str, drive: Drive) -> Iterator[npt.NDArray[np.uint8]]:
    """Play the episode that `desk` was reset to, and give a picture every few ticks.

    Goes on for half a second after the outcome is known, so that it can be seen.
    """
    left = _AFTER_FRAMES
    yield camera.picture()
    while left > 0:
        for _ in range(TICKS_PER_FRAME):
            desk.step(drive(desk))
        yield camera.picture()
        left -= desk.outcome(task) is not None


def caption(picture: npt.NDArray[np.uint8], text: str) -> npt.NDArray[np.uint8]:
    """The picture with `text` written at its lower edge."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=_CAPTION_PX)
    at = (image.width / 2, image.height - _CAPTION_PX)
    draw.text(at, text, font=font, anchor="mm", fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def save_pictures(path: Path, pictures: list[npt.NDArray[np.uint8]]) -> None:
    """Write the last picture (.png) or, in real time, all of them (.gif).

    Raises:
        ValueError: another ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(picture) for picture in pictures]
    match path.suffix:
        case ".png":
            images[-1].save(path)
        case ".gif":
            frame_ms = round(1000 * TICKS_PER_FRAME * CONTROL_PERIOD_S)
            small = [image.quantize(96, dither=Image.Dither.NONE) for image in images]
            small[0].save(path, save_all=True, append_images=small[1:], duration=frame_ms, loop=0)
        case _:
            msg = f"{path}: expected a name that ends in .png or .gif"
            raise ValueError(msg)
