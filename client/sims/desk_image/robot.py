"""The desk with a camera as one of the simulated robots."""

from __future__ import annotations

from client.sims.desk.phrasings import load
from client.sims.desk.robot import MAX_CHANGE
from client.sims.desk.spec import DESK_IMAGE_SPEC, TASKS, TIMEOUT_TICKS
from client.sims.desk_image.simulation import DeskImage
from client.sims.simulation import SimulatedRobot

ROBOT = SimulatedRobot(DESK_IMAGE_SPEC, TASKS, TIMEOUT_TICKS, MAX_CHANGE, DeskImage, load)
