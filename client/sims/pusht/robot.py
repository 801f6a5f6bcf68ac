"""Push-T as one of the simulated robots."""

from __future__ import annotations

from client.sims.pusht.phrasings import load
from client.sims.pusht.simulation import PushT
from client.sims.pusht.spec import MAX_CHANGE, PUSHT_SPEC, TASKS, TIMEOUT_TICKS
from client.sims.simulation import SimulatedRobot

ROBOT = SimulatedRobot(PUSHT_SPEC, TASKS, TIMEOUT_TICKS, MAX_CHANGE, PushT, load)
