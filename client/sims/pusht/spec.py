"""What Push-T is: its goals and its specification (needs no simulator).

Lengths are pixels of a 512 × 512 board, x to the right, y down; angles are radians. The goal is
where the outline is: no observation says which one is meant, the instruction names it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from client.specs import ArraySpec, PolicySpec

BOARD = 512.0
GOALS = {
    "middle": (256.0, 256.0, math.pi / 4),
    "lower_right": (356.0, 356.0, math.pi / 4),
}
"""x, y and angle of the block where it should be, by task."""
TASKS = tuple(GOALS)

CONTROL_PERIOD_S = 0.1
TIMEOUT_TICKS = 300
MAX_CHANGE = (math.inf, math.inf)
"""A target that jumps does no harm: the finger takes its time to get there."""
FULL_COVERAGE = 0.95
"""Share of the outline that is covered when an episode counts as solved, and scores 1."""

STATE_NAMES = ("finger_x", "finger_y", "block_x", "block_y", "block_sin", "block_cos")

PUSHT_SPEC = PolicySpec(
    task="pusht",
    observation={"state": ArraySpec((2, len(STATE_NAMES)), "float32", STATE_NAMES)},
    action_names=("target_x", "target_y"),
    action_minimum=(0.0, 0.0),
    action_maximum=(BOARD, BOARD),
    horizon=16,
    obs_steps=2,
    exec_steps=8,
    control_period_s=CONTROL_PERIOD_S,
)

PICTURE_SIDE = 96
"""Pixels, as in the published data sets."""
PUSHT_IMAGE_SPEC = replace(
    PUSHT_SPEC,
    task="pusht_image",
    observation={
        "camera": ArraySpec((1, PICTURE_SIDE, PICTURE_SIDE, 3), "uint8", ("red", "green", "blue")),
        "finger": ArraySpec((1, 2), "float32", STATE_NAMES[:2]),
    },
    obs_steps=1,
)
"""The same with a picture of the board: `client.sims.pusht_image` says what is on it."""
