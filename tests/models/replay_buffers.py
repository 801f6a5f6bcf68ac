"""Shared: small Push-T replay buffers, written by zarr itself in the layout that is published."""

import numpy as np
import zarr
from zarr.storage import ZipStore

from client.sims.pusht.spec import GOALS

LENGTHS = (20, 9, 14)
"""Steps of the episodes."""


def make_arrays(goal, seed=0):
    """Episodes that end at `goal`; the finger is at (step, 2·step), and sent to where it is."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(LENGTHS)
    steps = np.arange(ends[-1], dtype=np.float32)
    finger = np.stack([steps, 2 * steps], axis=1)
    block = rng.uniform(100, 400, (len(steps), 2)).astype(np.float32)
    block[ends - 1] = np.array(GOALS[goal][:2]) + rng.uniform(-5, 5, (len(ends), 2))
    angle = rng.uniform(-18, 9, (len(steps), 1)).astype(np.float32)
    return {
        "data/state": np.concatenate([finger, block, angle], axis=1),
        "data/action": finger.copy(),
        "data/img": np.zeros((len(steps), 2, 2, 3), np.uint8),  # not of the stated size: not read
        "meta/episode_ends": ends,
    }


def write(path, arrays):
    """A zip if the name ends so, else a folder."""
    if path.suffix == ".zip":
        with ZipStore(path, mode="w") as store:
            _write(store, arrays)
    else:
        _write(path, arrays)
    return path


def write_both(folder):
    """A buffer for each goal; the words that `--demos` takes."""
    folder.mkdir()
    paths = {
        goal: write(folder / f"{goal}.zarr.zip", make_arrays(goal, seed))
        for seed, goal in enumerate(GOALS)
    }
    return tuple(f"{goal}={path}" for goal, path in paths.items())


def _write(store, arrays):
    group = zarr.create_group(store, zarr_format=2)
    for name, array in arrays.items():
        group.create_array(name, data=array, chunks=(7, *array.shape[1:]))
