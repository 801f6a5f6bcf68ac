"""The desk in simulated time: starts, control ticks, observations, and who won an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mujoco
import numpy as np
import numpy.typing as npt

from client.sims.desk.scene import build_model
from client.sims.desk.spec import (
    DONE_FRACTION,
    FIXTURES,
    HAND_START_HIGH,
    HAND_START_LOW,
    JOINT_START_FRACTION,
    METRES_PER_ACTION,
    OPPOSITE,
    SUBSTEPS,
    TIMEOUT_TICKS,
    Verdict,
)

Float64 = npt.NDArray[np.float64]

_HAND_LOW = np.array([-0.50, 0.40, 0.05])  # what the commanded hand can reach
_HAND_HIGH = np.array([0.55, 0.95, 0.45])
_MAX_LEAD_M = 0.05  # the commanded hand is never farther than this from the real one, per axis
_HAND_QUAT = np.array([1.0, 0.0, 1.0, 0.0])  # fingers down
_OPEN = -1.0
_HOME_TICKS = 240
_SETTLE_TICKS = 60
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
# The point that the observation gives of each object, in the frame of its moving body.
_POINTS = (
    ("drawer_slide", np.array([0.0, -0.15, 0.0])),
    ("lever_slide", np.array([0.0, -0.166, 0.0])),
    ("faucet_hinge", np.array([0.0, -0.15, 0.0])),
)


@dataclass(frozen=True)
class DeskStart:
    """A state in which an episode begins; says nothing about the task.

    Attributes:
        physics: float64 [n], MuJoCo's whole integration state, at rest, at time 0.
        places: float64 [3, 3], where drawer, lever and faucet stand, in metres.
    """

    physics: Float64
    places: Float64


class Desk:
    """One desk; `reset`, then `step` and `observation` once per control tick.

    Attributes:
        model: the compiled scene; `places` of a start are written into it.
        data: its present state.
        ticks: control ticks since `reset`.
    """

    def __init__(self) -> None:
        self.model: Any = build_model()
        self.data: Any = mujoco.MjData(self.model)
        self.ticks = 0
        self._first_end: str | None = None
        self._grip = _OPEN
        model = self.model
        self._hand = model.body("hand").id
        self._claws = (model.body("rightclaw").id, model.body("leftclaw").id)
        self._mocap = int(model.body("mocap").mocapid[0])
        self._fixture_bodies = [model.body(f.body).id for f in FIXTURES]
        joints = [model.joint(f.joint) for f in FIXTURES]
        self._qpos = np.array([int(j.qposadr[0]) for j in joints])
        self._range = np.array([j.range for j in joints])
        self._points = [(int(model.joint(j).bodyid[0]), point) for j, point in _POINTS]
        self._home = self._find_home()

    def sample_start(self, rng: np.random.Generator) -> DeskStart:
        """Draw a start: places, joints mid-way, and the hand moved somewhere above the near side.

        The draw is the same for all tasks. The desk itself is left in that start.
        """
        spread = np.array([[f.spread_m, f.spread_m, 0.0] for f in FIXTURES])
        places = np.array([[*f.place, 0.0] for f in FIXTURES]) + rng.uniform(-spread, spread)
        low, high = self._range.T
        joints = low + (high - low) * rng.uniform(*JOINT_START_FRACTION, size=len(FIXTURES))
        goal = rng.uniform(HAND_START_LOW, HAND_START_HIGH)

        self.reset(DeskStart(self._home, places))
        for _ in range(_SETTLE_TICKS):
            step = np.clip((goal - self.data.mocap_pos[self._mocap]) / METRES_PER_ACTION, -1, 1)
            self.step(np.array([*step, _OPEN]))
        return self._at_rest(joints, places)

    def reset(self, start: DeskStart) -> None:
        """Put the desk into a start; exact, so the same actions give the same trajectory."""
        self.model.body_pos[self._fixture_bodies] = start.places
        mujoco.mj_setState(self.model, self.data, start.physics, _STATE)
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, start.physics, _STATE)  # undo the warm start
        self.ticks = 0
        self._first_end = None
        self._grip = _OPEN

    def step(self, action: npt.NDArray[Any]) -> None:
        """Advance one control period.

        Args:
            action: float [4], hand_dx, hand_dy, hand_dz in units of 1 cm, and grip (−1 open, 1
                closed), each in −1..1; the caller checks.
        """
        data = self.data
        hand = data.xpos[self._hand]
        wanted = data.mocap_pos[self._mocap] + METRES_PER_ACTION * action[:3]
        wanted = np.clip(wanted, hand - _MAX_LEAD_M, hand + _MAX_LEAD_M)
        data.mocap_pos[self._mocap] = np.clip(wanted, _HAND_LOW, _HAND_HIGH)
        data.ctrl[:] = action[3], -action[3]
        mujoco.mj_step(self.model, data, SUBSTEPS)
        mujoco.mj_kinematics(self.model, data)
        self.ticks += 1
        self._grip = float(action[3])
        if self._first_end is None:
            self._first_end = self._reached_end()

    def observation(self) -> dict[str, npt.NDArray[Any]]:
        """What is seen now: {"state": float32 [13]}."""
        return {"state": self.state()}

    def state(self) -> npt.NDArray[np.float32]:
        """The present state in metres, without velocities: float32 [13]."""
        data = self.data
        right, left = (data.xpos[claw] for claw in self._claws)
        state = [*data.xpos[self._hand], np.linalg.norm(right - left)]
        for body, point in self._points:
            state.extend(data.xpos[body] + data.xmat[body].reshape(3, 3) @ point)
        return np.array(state, dtype=np.float32)

    def safe_action(self) -> npt.NDArray[np.float32]:
        """Stay where you are, with the gripper as it was told last: float32 [4]."""
        return np.array([0.0, 0.0, 0.0, self._grip], dtype=np.float32)

    def joint_fractions(self) -> Float64:
        """Float64 [3], how far drawer, lever and faucet are between their lower and upper limit."""
        low, high = self._range.T
        fractions: Float64 = (self.data.qpos[self._qpos] - low) / (high - low)
        return fractions

    def outcome(self, task: str) -> Verdict | Literal["timeout"] | None:
        """How the episode ended for somebody who was asked for `task`; None while it is open.

        The first end of travel that any object reaches decides, even if more is done after it.
        """
        if self._first_end is None:
            return "timeout" if self.ticks >= TIMEOUT_TICKS else None
        if self._first_end == task:
            return "asked"
        return "opposite" if self._first_end == OPPOSITE[task] else "other"

    def scores(self) -> dict[str, float]:
        """Empty: a task is done or not."""
        return {}

    def _reached_end(self) -> str | None:
        for fixture, fraction in zip(FIXTURES, self.joint_fractions(), strict=True):
            if fraction >= DONE_FRACTION:
                return fixture.high_task
            if fraction <= 1 - DONE_FRACTION:
                return fixture.low_task
        return None

    def _at_rest(self, joints: Float64, places: Float64) -> DeskStart:
        """Stop everything where it is, set the fixtures' joints, and take the state as a start."""
        self.data.qpos[self._qpos] = joints
        self.data.qvel[:] = 0.0
        self.data.time = 0.0
        mujoco.mj_forward(self.model, self.data)
        physics = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, physics, _STATE)
        start = DeskStart(physics, places)
        self.reset(start)
        return start

    def _find_home(self) -> Float64:
        """Drag the arm from the model's own pose to the middle of the start box, once."""
        home = (np.array(HAND_START_LOW) + HAND_START_HIGH) / 2
        self.data.ctrl[:] = -1.0, 1.0
        for _ in range(_HOME_TICKS):
            self.data.mocap_pos[self._mocap] = home
            self.data.mocap_quat[self._mocap] = _HAND_QUAT
            mujoco.mj_step(self.model, self.data, SUBSTEPS)
        places = self.model.body_pos[self._fixture_bodies].copy()
        return self._at_rest(self._range.mean(axis=1), places).physics
