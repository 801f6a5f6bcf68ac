"""The desk in simulated time, observed by a camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from client.sims.desk.render import policy_camera
from client.sims.desk.simulation import Desk, DeskStart
from client.sims.desk.spec import FRAME_TICKS


class DeskImage(Desk):
    """`Desk` that shows frames of a camera where the other tells where the objects are."""

    def __init__(self) -> None:
        policy_camera()  # what is missing is better known before the first episode
        super().__init__()

    def reset(self, start: DeskStart) -> None:
        """See `Desk.reset`."""
        super().reset(start)
        self._frame: npt.NDArray[np.uint8] | None = None
        self._frame_tick = 0

    def observation(self) -> dict[str, npt.NDArray[Any]]:
        """What is seen now: {"camera": uint8 [96, 96, 3], "hand": float32 [4], metres}.

        A frame takes longer to draw than a control tick lasts, and cameras are slower than control
        loops, too: the last one is seen again until `FRAME_TICKS` have passed. It is the same array
        then.
        """
        if self._frame is None or self.ticks - self._frame_tick >= FRAME_TICKS:
            self._frame = policy_camera().picture(self)
            self._frame_tick = self.ticks
        return {"camera": self._frame, "hand": self.state()[:4]}
