"""Pictures of a Push-T board in any state, drawn as gym-pusht draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from client.sims.pusht.simulation import PushT
from client.sims.pusht.spec import BOARD, GOALS, PICTURE_SIDE

import pygame  # isort: skip  # once the line above has told it not to greet
from gym_pusht.envs.pymunk_override import DrawOptions  # isort: skip

_SIDE = int(BOARD)
_WHITE = (255, 255, 255)


class Painter:
    """Paints boards; has one of its own, which never moves by itself.

    Args:
        goals: x, y and angle of each outline; all of them unless told otherwise.
        side: pixels of a picture.
    """

    def __init__(
        self,
        goals: Iterable[tuple[float, float, float]] = tuple(GOALS.values()),
        side: int = PICTURE_SIDE,
    ) -> None:
        self._size = (side, side)
        self._board: Any = PushT().board
        bodies = [self._board.get_goal_pose_body(np.array(goal)) for goal in goals]
        self._empty = pygame.Surface((_SIDE, _SIDE))
        self._empty.fill(_WHITE)
        for body in bodies:
            for shape in self._board.block.shapes:
                corners = [body.local_to_world(corner) for corner in shape.get_vertices()]
                # the first corner once more at the end, and whole pixels, as the original has it
                corners = [(round(x), round(y)) for x, y in [*corners, corners[0]]]
                pygame.draw.polygon(self._empty, pygame.Color("LightGreen"), corners)

    def paint(self, state: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """One picture.

        Args:
            state: float32 [6] as in `PUSHT_SPEC`.

        Returns:
            uint8 [side, side, 3], RGB.
        """
        finger_x, finger_y, block_x, block_y, sine, cosine = map(float, state)
        space, finger, block = self._board.space, self._board.agent, self._board.block
        finger.position = (finger_x, finger_y)
        block.angle = math.atan2(sine, cosine)  # before the position, which it moves
        block.position = (block_x, block_y)
        for body in (finger, block):
            space.reindex_shapes_for_body(body)
        screen = self._empty.copy()
        space.debug_draw(DrawOptions(screen))
        pixels = pygame.surfarray.pixels3d(screen).transpose(1, 0, 2)
        picture: npt.NDArray[Any] = cv2.resize(pixels, self._size)
        return picture.astype(np.uint8, copy=False)


def paint_all(states: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Pictures of many states, float32 [n, 6] → uint8 [n, 96, 96, 3], some 2 ms each."""
    painter = Painter()
    pictures = np.empty((len(states), PICTURE_SIDE, PICTURE_SIDE, 3), np.uint8)
    for i, state in enumerate(states):
        pictures[i] = painter.paint(state)
    return pictures
