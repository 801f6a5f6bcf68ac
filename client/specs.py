"""What a policy takes and gives (shapes, dtypes, periods), shared by robot, server, trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from client.errors import InvalidRequestError
from client.field_checks import all_finite, dtype_name, integer, number, positive_seconds, text

ALLOWED_DTYPES = ("float32", "uint8")
_MAX_NAME_BYTES = 100
_SPEC_ID_DIGITS = 16


@dataclass(frozen=True)
class ArraySpec:
    """One named array of an observation.

    Attributes:
        shape: full shape as sent, the leading obs_steps axis included.
        dtype: one of `ALLOWED_DTYPES`.
        names: what each entry of the last axis is, for people; may be empty.
    """

    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the specification itself."""
        shape = tuple(integer("ArraySpec.shape", n, 1) for n in self.shape)
        names = tuple(text("ArraySpec.names", name, _MAX_NAME_BYTES) for name in self.names)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "names", names)
        if self.dtype not in ALLOWED_DTYPES:
            msg = f"ArraySpec.dtype: expected one of {ALLOWED_DTYPES}, got {self.dtype!r}"
            raise ValueError(msg)
        if not self.shape:
            raise ValueError("ArraySpec.shape: expected at least one dimension, got ()")
        if self.names and len(self.names) != self.shape[-1]:
            msg = f"ArraySpec.names: expected {self.shape[-1]} names, got {len(self.names)}"
            raise ValueError(msg)

    def validate(self, name: str, array: object) -> npt.NDArray[Any]:
        """Return `array` unchanged if it fits; never casts, since a cast would hide a caller's bug.

        Raises:
            InvalidRequestError: names the field, what was expected and what came.
        """
        if not isinstance(array, np.ndarray):
            msg = f"observation.{name}: expected a numpy array, got {type(array).__name__}"
            raise InvalidRequestError(msg)
        if array.shape != self.shape:
            msg = f"observation.{name}: expected shape {self.shape}, got {array.shape}"
            raise InvalidRequestError(msg)
        if dtype_name(array.dtype) != self.dtype:
            msg = (
                f"observation.{name}: expected dtype {self.dtype}, got {dtype_name(array.dtype)}; "
                f"convert with .astype({self.dtype!r})"
            )
            raise InvalidRequestError(msg)
        if array.dtype.kind == "f" and not all_finite(array):
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            msg = (
                f"observation.{name}: expected finite numbers, "
                f"got {array[where]} at index {list(where)}"
            )
            raise InvalidRequestError(msg)
        return array


@dataclass(frozen=True)
class PolicySpec:
    """The contract between a robot and a policy.

    Attributes:
        task: short name of what the policy was trained on, e.g. "desk".
        observation: array specifications by name.
        action_names: meaning of each action dimension; its length is action_dim.
        action_minimum: per dimension, in the robot's units.
        action_maximum: per dimension, in the robot's units.
        horizon: actions in a chunk.
        obs_steps: observations in the history, oldest first, control_period_s apart.
        exec_steps: actions executed before the next request is due.
        control_period_s: time between two executed actions.
    """

    task: str
    observation: Mapping[str, ArraySpec]
    action_names: tuple[str, ...]
    action_minimum: tuple[float, ...]
    action_maximum: tuple[float, ...]
    horizon: int
    obs_steps: int
    exec_steps: int
    control_period_s: float

    def __post_init__(self) -> None:
        """Check that the parts agree with each other."""
        text("PolicySpec.task", self.task, _MAX_NAME_BYTES)
        names = tuple(
            text("PolicySpec.action_names", name, _MAX_NAME_BYTES) for name in self.action_names
        )
        object.__setattr__(self, "action_names", names)
        for field in ("action_minimum", "action_maximum"):
            limits = tuple(number(f"PolicySpec.{field}", limit) for limit in getattr(self, field))
            object.__setattr__(self, field, limits)
        object.__setattr__(self, "observation", dict(self.observation))
        integer("PolicySpec.obs_steps", self.obs_steps, 1)
        integer("PolicySpec.horizon", self.horizon, 1)
        integer("PolicySpec.exec_steps", self.exec_steps, 1, self.horizon)
        positive_seconds("PolicySpec.control_period_s", self.control_period_s)
        if not self.observation:
            raise ValueError("PolicySpec.observation: expected at least one array")
        for name, spec in self.observation.items():
            text("PolicySpec.observation", name, _MAX_NAME_BYTES)
            if spec.shape[0] != self.obs_steps:
                msg = (
                    f"PolicySpec.observation[{name!r}]: expected a leading axis of "
                    f"obs_steps={self.obs_steps}, got shape {spec.shape}"
                )
                raise ValueError(msg)
        if not len(self.action_names) == len(self.action_minimum) == len(self.action_maximum) > 0:
            raise ValueError("PolicySpec.action_*: expected equal, non-zero lengths")
        for name, low, high in zip(
            self.action_names, self.action_minimum, self.action_maximum, strict=True
        ):
            if low > high:
                msg = f"PolicySpec.action_minimum: expected at most {high} for {name}, got {low}"
                raise ValueError(msg)

    @property
    def action_dim(self) -> int:
        """Numbers in one action."""
        return len(self.action_names)

    @property
    def request_period_s(self) -> float:
        """Time between two requests: exec_steps · control_period_s."""
        return self.exec_steps * self.control_period_s

    @property
    def spec_id(self) -> str:
        """Equal for equal specifications, and for them only."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_SPEC_ID_DIGITS]

    def validate_observation(
        self, observation: Mapping[str, object]
    ) -> dict[str, npt.NDArray[Any]]:
        """Check every array of an observation.

        Raises:
            InvalidRequestError: a key is missing or unknown, or an array does not fit.
        """
        if not isinstance(observation, (dict, Mapping)):  # dict: ten times as fast
            msg = f"observation: expected a mapping of arrays, got {type(observation).__name__}"
            raise InvalidRequestError(msg)
        if observation.keys() != self.observation.keys():
            self._refuse_names(observation)
        return {
            name: spec.validate(name, observation[name]) for name, spec in self.observation.items()
        }

    def _refuse_names(self, observation: Mapping[str, object]) -> NoReturn:
        missing = [name for name in self.observation if name not in observation]
        unknown = [name for name in observation if name not in self.observation]
        what = f"missing {missing}" if missing else f"unknown {unknown}"
        msg = f"observation: {what}, expected exactly {list(self.observation)}"
        raise InvalidRequestError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON and msgpack types; inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, description: object) -> PolicySpec:
        """Inverse of `to_dict`, for a description that came from a file or a socket.

        Raises:
            ValueError: a field is missing, unknown or inconsistent.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(description, Mapping) or set(description) != names:
            got = list(description) if isinstance(description, Mapping) else type(description)
            msg = f"PolicySpec: expected exactly the fields {sorted(names)}, got {got}"
            raise ValueError(msg)
        try:
            observation = {
                name: ArraySpec(**array) for name, array in description["observation"].items()
            }
            return cls(**{**description, "observation": observation})
        except (TypeError, AttributeError) as error:
            msg = f"PolicySpec: expected the types that to_dict gives, got {error}"
            raise ValueError(msg) from error
