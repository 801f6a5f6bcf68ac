"""Push-T in simulated time, observed by a camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from client.sims.pusht.simulation import PushT
from client.sims.pusht_image.pictures import Painter


class PushTImage(PushT):
    """`PushT` that shows a picture of the board where the other tells its state."""

    def __init__(self) -> None:
        self._painter = Painter()
        super().__init__()

    def observation(self) -> dict[str, npt.NDArray[Any]]:
        """What is seen now: {"camera": uint8 [96, 96, 3], "finger": float32 [2], pixels}.

        Painted from the state as a policy would be told it, and so are the pictures to learn from.
        """
        state: npt.NDArray[np.float32] = super().observation()["state"]
        return {"camera": self._painter.paint(state), "finger": state[:2]}
