"""Pictures of the desk, drawn with or without a display."""

from __future__ import annotations

import atexit
import os
import sys
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import TracebackType
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from client.sims.desk.scene import build_model
from client.sims.desk.simulation import Desk
from client.sims.desk.spec import PICTURE_SIDE

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
"""What draws without a display, by its name for MUJOCO_GL, and its library."""


class NoDisplayError(RuntimeError):
    """There is nothing to draw with on this machine; the message says what to install."""


@dataclass(frozen=True)
class View:
    """From where a camera looks; angles in degrees, metres.

    Attributes:
        lookat: the point in the middle of the picture.
        distance: from there.
        azimuth: direction of looking, 90 with the arm's reach, 270 against it.
        elevation: negative from above.
    """

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


FILM_TICKS = 4
"""Control ticks between two pictures of a film: 20 pictures a second of simulated time."""
FILM_AFTER_FRAMES = 10
OVER_SHOULDER = View((0.0, 0.62, 0.10), 1.45, 138.0, -36.0)
"""Over the robot's right shoulder; for people."""
FACING = View((0.05, 0.66, 0.08), 1.5, 270.0, -55.0)
"""From across the table: nothing that a task is about is behind the arm, or outside the picture."""


class Camera:
    """Looks at desks from one place; close it, or use it as a context.

    One camera is enough for any number of desks: they differ in numbers, which come with each, not
    in meshes, which it holds (130 MB). It can be used in one thread only.

    Raises:
        NoDisplayError: there is no display, and no library that draws without one.
    """

    def __init__(self, view: View, *, width: int, height: int) -> None:
        self._gl: Any = _drawing_context(width, height)
        model = build_model()
        model.vis.global_.offwidth = width
        model.vis.global_.offheight = height
        self._gl.make_current()
        self._context: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene: Any = mujoco.MjvScene(model, 1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0  # without a graphics card they take most of the time
        self._option: Any = mujoco.MjvOption()
        self._view: Any = mujoco.MjvCamera()
        for name, value in vars(view).items():
            setattr(self._view, name, value)
        self._rows: Any = mujoco.MjrRect(0, 0, width, height)

    def picture(self, desk: Desk) -> npt.NDArray[np.uint8]:
        """What a desk looks like now: uint8 [height, width, 3]."""
        # mj_forward would move the warm start, and with it the episode that is being filmed
        mujoco.mj_kinematics(desk.model, desk.data)
        mujoco.mj_comPos(desk.model, desk.data)
        mujoco.mj_camlight(desk.model, desk.data)
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            desk.model, desk.data, self._option, None, self._view, everything, self._scene
        )
        mujoco.mjr_render(self._rows, self._scene, self._context)
        picture = np.empty((self._rows.height, self._rows.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._rows, self._context)
        return picture[::-1].copy()  # OpenGL's rows begin at the bottom

    def close(self) -> None:
        """Free the drawing context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()

    def __enter__(self) -> Camera:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@cache
def policy_camera() -> Camera:
    """The one through which all desks of this process are seen by policies; made when needed.

    Raises:
        NoDisplayError: see `Camera`.
    """
    camera = Camera(FACING, width=PICTURE_SIDE, height=PICTURE_SIDE)
    atexit.register(camera.close)  # before the library's own end
    return camera


def _drawing_context(width: int, height: int) -> Any:  # noqa: ANN401 - MuJoCo has no types
    """A drawing context of MuJoCo: of what MUJOCO_GL says, or of what is there.

    MuJoCo reads MUJOCO_GL when it is imported, and then cannot be imported without that library;
    the desk itself shall not need one. So what nobody has chosen is chosen here, when it is needed.
    """
    chosen = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("MUJOCO_GL")
    found = [name for name, library in _LIBRARIES.items() if chosen or find_library(library)]
    try:
        if not found:
            raise ImportError("neither libEGL nor libOSMesa is installed")
        return import_module("mujoco.gl_context" if chosen else f"mujoco.{found[0]}").GLContext(
            width, height
        )
    except (AttributeError, ImportError, RuntimeError) as error:  # a library, but not all it needs
        msg = (
            f"nothing to draw with, neither a display nor what needs none ({error}); on Debian: "
            "apt-get install libegl1 libgl1-mesa-dri (or libosmesa6, and MUJOCO_GL=osmesa)"
        )
        raise NoDisplayError(msg) from error
