"""Scripted experts for the six tasks, built on the policies that metaworld ships.

Each shipped policy knows one object by one point. An expert here sees the observation and nothing
else, so a learner that sees the same can imitate it. As shipped they win most episodes, but they
overshoot, let go in mid-task, and lose when disturbed; every class below says what it changes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from metaworld.policies.policy import Policy, move
from metaworld.policies.sawyer_drawer_close_v3_policy import SawyerDrawerCloseV3Policy
from metaworld.policies.sawyer_drawer_open_v3_policy import SawyerDrawerOpenV3Policy
from metaworld.policies.sawyer_faucet_close_v3_policy import SawyerFaucetCloseV3Policy
from metaworld.policies.sawyer_faucet_open_v3_policy import SawyerFaucetOpenV3Policy
from metaworld.policies.sawyer_handle_press_v3_policy import SawyerHandlePressV3Policy
from metaworld.policies.sawyer_handle_pull_v3_policy import SawyerHandlePullV3Policy

from client.sims.desk.simulation import Desk

Float64 = npt.NDArray[np.float64]


def _xyz(x: float, y: float, z: float) -> Float64:
    return np.array([x, y, z])


class _HandlePress(SawyerHandlePressV3Policy):
    """The shipped one, which presses wherever the hand is over the grip, not at its middle only."""

    @staticmethod
    def _desired_pos(o_d: dict[str, Float64]) -> Float64:
        handle = o_d["handle_pos"]
        across, ahead, above = o_d["hand_pos"] - handle
        if abs(across) < 0.05 and abs(ahead + 0.01) < 0.03 and above > 0.0:
            return handle + _xyz(0.0, -0.01, -0.5)
        shipped: Float64 = SawyerHandlePressV3Policy._desired_pos(o_d)
        return shipped


class _HandlePull(SawyerHandlePullV3Policy):
    """The shipped one with another approach: down in front of the handle, then against it, then up.

    The shipped approach comes from above, which presses the handle down, and frees itself by a
    slip: where a position is meant it returns a height, which is broadcast to all three axes.
    """

    @staticmethod
    def _desired_pos(o_d: dict[str, Float64]) -> Float64:
        handle = o_d["handle_pos"]
        across, ahead, above = o_d["hand_pos"] - handle
        if abs(across) > 0.04 or above > 0.03:
            return handle + _xyz(0.0, -0.09, -0.02)
        if ahead < -0.05:
            return handle + _xyz(0.0, -0.02, -0.02)
        return handle + _xyz(0.0, -0.02, 0.1)


class _DrawerOpen(SawyerDrawerOpenV3Policy):
    """In the manner of the shipped one: above the handle, down, then back hard.

    The fingers are open along y; the farther one comes down between handle and drawer and hooks it.
    The shipped one drops from 6 cm aside already, so that a disturbed hand pushes the drawer shut.
    """

    def get_action(self, obs: Float64) -> npt.NDArray[np.float32]:
        hand, gap = obs[:3], obs[4:7] + _xyz(0.0, -0.02, -0.02)
        across, ahead, above = hand - gap
        near = abs(across) < 0.04 and abs(ahead) < 0.02
        if above < 0.04 and abs(across) < 0.05 and ahead > -0.04:
            delta = move(hand, gap + _xyz(0.0, -0.06, 0.0), p=20.0)
        elif near:
            delta = move(hand, gap, p=10.0)
        else:
            delta = move(hand, gap + _xyz(0.0, 0.0, 0.15), p=10.0)
        return np.array([*delta, -1.0], dtype=np.float32)


class _DrawerClose(SawyerDrawerCloseV3Policy):
    """The shipped one, which first comes to stand in front of the handle, not beside it.

    From a start far to the side the shipped one arrives at the handle's end and rubs along it.
    """

    @staticmethod
    def _desired_pos(o_d: dict[str, Float64]) -> Float64:
        hand, handle = o_d["hand_pos"], o_d["drwr_pos"]
        if abs(hand[0] - handle[0]) > 0.045:
            return handle + _xyz(0.0, -0.09, 0.06)
        shipped: Float64 = SawyerDrawerCloseV3Policy._desired_pos(o_d)
        return shipped


class _FaucetLeft(SawyerFaucetCloseV3Policy):
    """The shipped one, which goes on pushing when the hand has slid along the turning handle."""

    @staticmethod
    def _desired_pos(o_d: dict[str, Float64]) -> Float64:
        if _beside_faucet(o_d, side=1.0):
            return o_d["faucet_pos"] + _xyz(-0.06, 0.05, 0.03)
        shipped: Float64 = SawyerFaucetCloseV3Policy._desired_pos(o_d)
        return shipped


class _FaucetRight(SawyerFaucetOpenV3Policy):
    """The mirror image of `_FaucetLeft`."""

    @staticmethod
    def _desired_pos(o_d: dict[str, Float64]) -> Float64:
        if _beside_faucet(o_d, side=-1.0):
            return o_d["faucet_pos"] + _xyz(0.06, 0.05, 0.03)
        shipped: Float64 = SawyerFaucetOpenV3Policy._desired_pos(o_d)
        return shipped


def _beside_faucet(o_d: dict[str, Float64], side: float) -> bool:
    """Whether the hand is at the height of the faucet's handle and to its `side` (+1: right)."""
    across, ahead, above = o_d["hand_pos"] - o_d["faucet_pos"]
    return bool(0.0 < side * across < 0.08 and abs(ahead) < 0.08 and above < 0.07)


@dataclass(frozen=True)
class _Expert:
    """One shipped policy and how to feed it.

    Attributes:
        policy: from metaworld.
        point: where in the desk's state its object's point begins.
        offset: added to that point, in metres: from the desk's point to the one it expects.
        gain: multiplies what it answers for the hand. With 1, as shipped, the hand, which follows
            its command about 40 ms late, overshoots and swings.
    """

    policy: Policy
    point: int
    offset: tuple[float, float, float]
    gain: float = 1.0


_EXPERTS = {
    "drawer_open": _Expert(_DrawerOpen(), 4, (0.0, 0.0, 0.0)),
    "drawer_close": _Expert(_DrawerClose(), 4, (0.0, -0.01, 0.05), 0.4),
    "lever_down": _Expert(_HandlePress(), 7, (0.0, 0.0, 0.022), 0.4),
    "lever_up": _Expert(_HandlePull(), 7, (0.0, 0.0, 0.0), 0.4),
    "faucet_left": _Expert(_FaucetLeft(), 10, (0.01, -0.015, -0.01), 0.4),
    "faucet_right": _Expert(_FaucetRight(), 10, (-0.01, -0.015, -0.01), 0.4),
}


def expert_action(task: str, desk: Desk) -> npt.NDArray[np.float32]:
    """What the expert for `task` does now: float32 [4] in −1..1."""
    return action_for(task, desk.state())


def action_for(task: str, state: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the expert for `task` does in `state` (float32 [13]): float32 [4] in −1..1."""
    expert = _EXPERTS[task]
    seen = np.zeros(39)  # the layout of Meta-World's own observation
    seen[:4] = state[:4]
    seen[4:7] = state[expert.point : expert.point + 3] + np.array(expert.offset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that its gain exceeds the limits; we clip
        action: npt.NDArray[Any] = expert.policy.get_action(seen)
    action[:3] *= expert.gain
    clipped: npt.NDArray[np.float32] = np.clip(action[:4], -1.0, 1.0).astype(np.float32)
    return clipped
