"""What the desk is: its tasks, its specification and its random ranges (needs no simulator).

Axes of the world, in metres: x to the right, y forward along the reach of the arm, z up, as seen by
somebody who stands behind the robot and looks the way it reaches. The table top is z = 0.
`faucet_left` and `faucet_right` are meant from there: the free end of the faucet's handle goes to
the left (−x) or to the right (+x).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from client.specs import ArraySpec, PolicySpec

Verdict = Literal["asked", "opposite", "other"]

TASKS = ("drawer_open", "drawer_close", "lever_down", "lever_up", "faucet_left", "faucet_right")
OPPOSITE = {
    "drawer_open": "drawer_close",
    "drawer_close": "drawer_open",
    "lever_down": "lever_up",
    "lever_up": "lever_down",
    "faucet_left": "faucet_right",
    "faucet_right": "faucet_left",
}

SUBSTEPS = 5
SUBSTEP_S = 0.0025
CONTROL_PERIOD_S = SUBSTEPS * SUBSTEP_S
METRES_PER_ACTION = 0.01  # how far the commanded hand moves in one tick for an action of 1
TIMEOUT_S = 2.5
TIMEOUT_TICKS = 200
DONE_FRACTION = 0.85  # of a joint's travel, toward the named end

STATE_NAMES = (
    "hand_x",
    "hand_y",
    "hand_z",
    "gripper_opening",
    "drawer_handle_x",
    "drawer_handle_y",
    "drawer_handle_z",
    "lever_handle_x",
    "lever_handle_y",
    "lever_handle_z",
    "faucet_handle_x",
    "faucet_handle_y",
    "faucet_handle_z",
)

DESK_SPEC = PolicySpec(
    task="desk",
    observation={"state": ArraySpec((2, len(STATE_NAMES)), "float32", STATE_NAMES)},
    action_names=("hand_dx", "hand_dy", "hand_dz", "grip"),
    action_minimum=(-1.0, -1.0, -1.0, -1.0),
    action_maximum=(1.0, 1.0, 1.0, 1.0),
    horizon=16,
    obs_steps=2,
    exec_steps=8,
    control_period_s=CONTROL_PERIOD_S,
)

PICTURE_SIDE = 96
DESK_IMAGE_SPEC = replace(
    DESK_SPEC,
    task="desk_image",
    observation={
        "camera": ArraySpec((1, PICTURE_SIDE, PICTURE_SIDE, 3), "uint8", ("red", "green", "blue")),
        "hand": ArraySpec((1, 4), "float32", STATE_NAMES[:4]),
    },
    obs_steps=1,
)
"""The same seen by a camera, which shows where the objects are, and the arm's own sensors."""
FRAME_TICKS = 4
"""The camera gives 20 frames a second: a frame is seen until so many ticks later."""


@dataclass(frozen=True)
class Fixture:
    """One movable object of the desk.

    Attributes:
        body: name of the body that is placed.
        joint: name of its joint.
        place: x, y of that body's usual place, in metres.
        spread_m: largest random offset from there, in x and in y.
        friction: dry friction of the joint, newtons or newton-metres.
        low_task: the task whose end is the joint's lower limit.
        high_task: the task whose end is the joint's upper limit.
    """

    body: str
    joint: str
    place: tuple[float, float]
    spread_m: float
    friction: float
    low_task: str
    high_task: str


FIXTURES = (
    Fixture("drawer", "drawer_slide", (-0.30, 0.83), 0.05, 2.0, "drawer_open", "drawer_close"),
    Fixture("lever", "lever_slide", (0.0, 0.88), 0.03, 0.0, "lever_down", "lever_up"),
    Fixture("faucet", "faucet_hinge", (0.32, 0.70), 0.05, 0.0, "faucet_left", "faucet_right"),
)
JOINT_START_FRACTION = (0.25, 0.75)
HAND_START_LOW = (-0.10, 0.42, 0.22)
HAND_START_HIGH = (0.10, 0.57, 0.32)
