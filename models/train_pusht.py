"""Training of a Push-T policy: replay buffers, one a goal, in; a checkpoint folder out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from client.sims.pusht import phrasings as pusht_phrasings
from client.sims.pusht.spec import GOALS, PUSHT_IMAGE_SPEC, PUSHT_SPEC
from models.networks.unet1d import Unet1dConfig
from models.train import PolicyTrainConfig, TrainingTask


@dataclass(frozen=True, kw_only=True)
class TrainPushtConfig(PolicyTrainConfig):
    """What `python -m models train-pusht` takes.

    Attributes:
        demos: replay buffers as GOAL=PATH, one for each goal; a path is a zarr zip or folder. Their
            pictures are not read but painted anew from the recorded states (a minute, and 1.4 GB of
            memory), since in the recorded ones a single outline gives the goal away.
    """

    demos: tuple[str, ...]
    network: str = Unet1dConfig.kind
    draws_per_window: int = 1
    # two tasks lie 14.7 apart here, and wordings that nobody wrote down scatter by 3
    instruction_noise: float = 2.0
    save_every: int = 250

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        parse_demos(self.demos)

    def task(self) -> TrainingTask:
        """See `PolicyTrainConfig.task`.

        Raises:
            ModuleNotFoundError: zarr is not installed.
        """
        try:
            from models.replay_buffer import (  # noqa: PLC0415 - an export needs no zarr
                content_sha256,
                load_demonstrations,
            )
        except ModuleNotFoundError as error:
            msg = f"{error.name} is not installed: pip install -c constraints.txt -e '.[train]'"
            raise ModuleNotFoundError(msg, name=error.name) from error

        paths = parse_demos(self.demos)
        demos = load_demonstrations(paths)
        names = {goal: path.name for goal, path in paths.items()}
        identity = {"demos": names, "demos_sha256": content_sha256(demos)}
        phrasings = pusht_phrasings.known()
        match self.observation:
            case "state":
                return TrainingTask(PUSHT_SPEC, phrasings, demos, {"state": demos.state}, identity)
            case "image":
                from client.sims.pusht_image.pictures import (  # noqa: PLC0415 - needs the simulator
                    paint_all,
                )

                seen: dict[str, npt.NDArray[Any]] = {
                    "camera": paint_all(demos.state),
                    "finger": demos.state[:, :2],
                }
                return TrainingTask(PUSHT_IMAGE_SPEC, phrasings, demos, seen, identity)


def parse_demos(demos: Sequence[str]) -> dict[str, Path]:
    """`goal=path` words → path by goal, in the order of `GOALS`.

    Raises:
        ValueError: not of that form, or not exactly one path for each goal.
    """
    pairs = [word.partition("=") for word in demos]
    goals = [goal for goal, _, _ in pairs]
    if sorted(goals) != sorted(GOALS) or not all(path for _, _, path in pairs):
        expected = " ".join(f"{goal}=PATH" for goal in GOALS)
        msg = f"demos: expected {expected}, got {' '.join(demos) or 'nothing'}"
        raise ValueError(msg)
    paths = {goal: Path(path) for goal, _, path in pairs}
    return {goal: paths[goal] for goal in GOALS}
