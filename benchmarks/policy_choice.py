"""Which policy of which simulated robot a benchmark is about, as its options say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.sims.simulation import SimulatedRobot, load_robot, robot_names
from client.specs import PolicySpec
from models import checkpoint
from models.checkpoint import Manifest

_ROBOT = "desk"
"""Whose policy is taken if neither a robot nor a checkpoint is named."""


@dataclass(frozen=True, kw_only=True)
class PolicyChoice:
    """What every benchmark takes that plays episodes.

    Attributes:
        checkpoint: folder of the policy; the bundled one if not given.
        robot: one that is simulated here; the robot of the checkpoint if not given.
    """

    checkpoint: Path | None = None
    robot: str | None = None

    def __post_init__(self) -> None:
        """Check that there is such a robot, and a policy of it; fill in the bundled one."""
        if self.robot is not None and self.robot not in robot_names():
            msg = f"robot: expected one of {', '.join(robot_names())}, got {self.robot!r}"
            raise ValueError(msg)
        if self.checkpoint is None and not (self.folder / checkpoint.MANIFEST).is_file():
            msg = (
                f"checkpoint: no policy of {self.robot!r} is bundled ({self.folder} has no "
                f"{checkpoint.MANIFEST}); train one and name its folder"
            )
            raise ValueError(msg)
        object.__setattr__(self, "checkpoint", self.folder)  # results say which one it was

    @property
    def folder(self) -> Path:
        """Of the policy."""
        return self.checkpoint or checkpoint.PRETRAINED / (self.robot or _ROBOT)

    def read(self, remedy: str = "") -> tuple[Manifest, SimulatedRobot]:
        """The policy's manifest and its robot.

        Args:
            remedy: what to do if it is a policy of a robot that is not simulated here.

        Raises:
            CheckpointError: missing or unreadable.
            ValueError: it is a policy of another robot than asked for, or of none that is here.
        """
        manifest = checkpoint.read_manifest(self.folder)
        if self.robot not in {None, manifest.spec.task}:
            msg = (
                f"{self.folder}: expected a policy of {self.robot!r}, as --robot says, got one of "
                f"{manifest.spec.task!r}"
            )
            raise ValueError(msg)
        return manifest, robot_of(manifest.spec, self.folder, remedy)


def robot_of(spec: PolicySpec, folder: Path, remedy: str = "") -> SimulatedRobot:
    """The simulated robot that the policy in `folder` drives.

    Raises:
        ValueError: it is not simulated here, or not with this specification.
    """
    if spec.task not in robot_names():
        msg = (
            f"{folder}: expected a policy of a robot that is simulated here "
            f"({', '.join(robot_names())}), got one of {spec.task!r}{remedy and '; ' + remedy}"
        )
        raise ValueError(msg)
    robot = load_robot(spec.task)
    if spec != robot.spec:
        differ = [name for name, value in vars(spec).items() if value != getattr(robot.spec, name)]
        msg = (
            f"{folder}: expected the specification of {spec.task!r} as it is simulated here, got "
            f"another {', '.join(differ)}; train the policy again"
        )
        raise ValueError(msg)
    return robot
