"""Push-T with a camera as one of the simulated robots."""

from __future__ import annotations

from client.sims.pusht.phrasings import load
from client.sims.pusht.spec import MAX_CHANGE, PUSHT_IMAGE_SPEC, TASKS, TIMEOUT_TICKS
from client.sims.pusht_image.simulation import PushTImage
from client.sims.simulation import SimulatedRobot

ROBOT = SimulatedRobot(PUSHT_IMAGE_SPEC, TASKS, TIMEOUT_TICKS, MAX_CHANGE, PushTImage, load)
