"""The desk as one of the simulated robots."""

from __future__ import annotations

from client.sims.desk.phrasings import load
from client.sims.desk.simulation import Desk
from client.sims.desk.spec import DESK_SPEC, TASKS
from client.sims.simulation import SimulatedRobot

ROBOT = SimulatedRobot(DESK_SPEC, TASKS, Desk, load)
