"""The desk as one of the simulated robots."""

from __future__ import annotations

import math

from client.sims.desk.phrasings import load
from client.sims.desk.simulation import Desk
from client.sims.desk.spec import DESK_SPEC, TASKS, TIMEOUT_TICKS
from client.sims.simulation import SimulatedRobot

# the hand never turns round at full speed within a tick; the grip opens and closes at once
MAX_CHANGE = (1.8, 1.8, 1.8, math.inf)

ROBOT = SimulatedRobot(DESK_SPEC, TASKS, TIMEOUT_TICKS, MAX_CHANGE, Desk, load)
