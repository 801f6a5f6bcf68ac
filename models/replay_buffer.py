"""Push-T demonstrations from replay buffers as Diffusion Policy publishes them; all zarr is here.

A buffer is a zarr v2 group, zipped or a folder, with the arrays

    data/state         [steps, 5]   finger x, y, block x, y (pixels) and angle (radians), observed
    data/action        [steps, 2]   where the finger is sent from there (pixels)
    meta/episode_ends  [episodes]   index after the last step of each episode

and others that are not read. Step k's action was chosen at step k's state and executed after it,
so it is `actions[0]` of the window whose newest observation is k. (Diffusion Policy's own windows
begin at the oldest observation: the first obs_steps − 1 of its 16 actions are for the past. They
end at most exec_steps − 1 beyond the episode, ours up to horizon − 1: an action is a place to be
at, so repeating the last one shows to stay there, from wherever the server is asked.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import ZipStore

from client.sims.pusht.spec import GOALS, PUSHT_SPEC
from models.dataset import Demonstrations

_COLUMNS = {"data/state": 5, "data/action": PUSHT_SPEC.action_dim}


def load_demonstrations(paths: Mapping[str, Path]) -> Demonstrations:
    """Replay buffers as one set of demonstrations, the task of an episode being its goal.

    Args:
        paths: by goal.

    Returns:
        state float32 [steps, 6] as in `PUSHT_SPEC`, action float32 [steps, 2] in pixels.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not such a buffer, or its episodes end at another goal than is said.
    """
    parts = [_load_one(goal, path) for goal, path in paths.items()]
    lengths = [np.diff(part.episode_ends, prepend=0) for part in parts]
    return Demonstrations(
        np.concatenate([part.state for part in parts]),
        np.concatenate([part.action for part in parts]),
        np.cumsum(np.concatenate(lengths)),
        np.concatenate([part.task for part in parts]),
    )


def content_sha256(demos: Demonstrations) -> str:
    """Hash of what is learnt from, however it is packed."""
    digest = hashlib.sha256()
    for array in (demos.state, demos.action, demos.episode_ends):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(" ".join(demos.task).encode())
    return digest.hexdigest()


def _load_one(goal: str, path: Path) -> Demonstrations:
    with _opened(path) as group:
        state = _read(group, "data/state", path).astype(np.float32)
        action = _read(group, "data/action", path).astype(np.float32)
        ends = _read(group, "meta/episode_ends", path).astype(np.int64)
    low, high = action.min(0), action.max(0)
    if (low < PUSHT_SPEC.action_minimum).any() or (high > PUSHT_SPEC.action_maximum).any():
        msg = f"{path}: data/action: expected pixels on the board, got {low} to {high}"
        raise ValueError(msg)
    try:
        demos = Demonstrations(observed(state), action, ends, np.array([goal] * len(ends)))
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error
    _check_goal(goal, state[ends - 1, 2:4], path)
    return demos


def observed(state: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A buffer's state [steps, 5] → what the policy sees, [steps, 6].

    The angle may be any number of turns off; its sine and cosine are not.
    """
    position, angle = state[:, :4], state[:, 4:]
    return np.concatenate([position, np.sin(angle), np.cos(angle)], axis=1)


def _check_goal(goal: str, final: npt.NDArray[np.float32], path: Path) -> None:
    """Refuse a buffer whose episodes end elsewhere: nothing else would tell a mix-up.

    Args:
        goal: what it is said to show.
        final: float32 [episodes, 2], where the block lies in the end (pixels).
        path: named in the message.
    """
    names = list(GOALS)
    centres = np.array([GOALS[name][:2] for name in names])
    distances = np.linalg.norm(np.median(final, axis=0) - centres, axis=1)
    nearest = names[int(np.argmin(distances))]
    if nearest != goal:
        x, y = np.median(final, axis=0)
        msg = (
            f"{path}: its episodes end with the block near x {x:.0f}, y {y:.0f}: expected "
            f"demonstrations of {goal!r}, these look like {nearest!r}"
        )
        raise ValueError(msg)


@contextmanager
def _opened(path: Path) -> Iterator[zarr.Group]:
    if not path.exists():
        msg = f"{path}: not found; expected a zarr replay buffer, a zip file or a folder"
        raise FileNotFoundError(msg)
    if not (path.is_dir() or is_zipfile(path)):
        msg = f"{path}: not a zarr replay buffer: neither a folder nor a zip file"
        raise ValueError(msg)
    try:
        if path.is_dir():
            yield zarr.open_group(path, mode="r", zarr_format=2)
        else:
            with ZipStore(path, mode="r") as store:
                yield zarr.open_group(store, mode="r", zarr_format=2)
    except FileNotFoundError as error:
        msg = f"{path}: not a zarr replay buffer: {error}"
        raise ValueError(msg) from error


def _read(group: zarr.Group, name: str, path: Path) -> npt.NDArray[Any]:
    """One array of numbers.

    Raises:
        ValueError: it is missing, of another shape, or has numbers that are not finite.
    """
    found = group.get(name)
    if not isinstance(found, zarr.Array):
        msg = f"{path}: {name}: not found; expected an array of a Push-T replay buffer"
        raise ValueError(msg)
    array = np.asarray(found[:])
    columns = _COLUMNS.get(name)
    expected = ("steps", columns) if columns else ("episodes",)
    if len(array) == 0 or array.shape[1:] != expected[1:]:
        msg = f"{path}: {name}: expected shape {list(expected)}, got {list(array.shape)}"
        raise ValueError(msg)
    if not np.isfinite(array).all():
        step = int(np.argwhere(~np.isfinite(array))[0][0])
        msg = f"{path}: {name}: expected finite numbers, got {array[step]} at {step}"
        raise ValueError(msg)
    return array
