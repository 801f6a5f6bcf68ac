"""Push-T replay buffers, as zarr writes them: what is read, and what is refused."""

import math

import numpy as np
import pytest
import zarr

from client.sims.pusht.spec import PUSHT_SPEC
from models.replay_buffer import content_sha256, load_demonstrations
from tests.models.replay_buffers import LENGTHS, make_arrays, write

MIDDLE = make_arrays("middle")
LOWER_RIGHT = make_arrays("lower_right", seed=1)


@pytest.fixture
def paths(tmp_path):
    return {
        "middle": write(tmp_path / "a.zarr.zip", MIDDLE),
        "lower_right": write(tmp_path / "b.zarr", LOWER_RIGHT),
    }


def test_states_and_actions_are_what_the_specification_says(paths):
    demos = load_demonstrations(paths)
    written = np.concatenate([MIDDLE["data/state"], LOWER_RIGHT["data/state"]])
    assert demos.state.dtype == demos.action.dtype == np.float32
    assert demos.state.shape[1:] == PUSHT_SPEC.observation["state"].shape[1:]
    for row, (finger_x, finger_y, block_x, block_y, angle) in zip(
        demos.state, written, strict=True
    ):
        seen = (finger_x, finger_y, block_x, block_y, math.sin(angle), math.cos(angle))
        assert row == pytest.approx(seen, abs=1e-5)
    sent = np.concatenate([MIDDLE["data/action"], LOWER_RIGHT["data/action"]])
    assert np.array_equal(demos.action, sent)


def test_episodes_go_on_counting_from_buffer_to_buffer_and_have_their_goal(paths):
    demos = load_demonstrations(paths)
    assert np.diff(demos.episode_ends, prepend=0).tolist() == [*LENGTHS, *LENGTHS]
    assert demos.task.tolist() == ["middle"] * len(LENGTHS) + ["lower_right"] * len(LENGTHS)


def test_whole_turns_of_the_block_are_not_seen(paths, tmp_path):
    turned = {**MIDDLE, "data/state": MIDDLE["data/state"] + [0, 0, 0, 0, 6 * np.float32(np.pi)]}
    more = load_demonstrations({"middle": write(tmp_path / "turned.zarr", turned)})
    once = load_demonstrations({"middle": paths["middle"]})
    np.testing.assert_allclose(more.state, once.state, atol=1e-5)


def test_the_hash_is_of_the_content_not_of_its_packing(paths, tmp_path):
    zipped = load_demonstrations({"middle": paths["middle"]})
    folder = load_demonstrations({"middle": write(tmp_path / "c.zarr", MIDDLE)})
    other = load_demonstrations({"lower_right": paths["lower_right"]})
    assert content_sha256(zipped) == content_sha256(folder) != content_sha256(other)


def test_swapped_buffers_are_refused(paths):
    with pytest.raises(ValueError, match="of 'middle', these look like 'lower_right'"):
        load_demonstrations({"middle": paths["lower_right"], "lower_right": paths["middle"]})


def without_last_step():
    return MIDDLE["data/action"][:-1]


def with_nan():
    state = MIDDLE["data/state"].copy()
    state[3, 1] = np.nan
    return state


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("data/action", None, "data/action: not found"),
        ("meta/episode_ends", None, "meta/episode_ends: not found"),
        ("data/state", MIDDLE["data/state"][:, :4], r"data/state: expected shape .*got \[43, 4\]"),
        ("data/state", with_nan(), "data/state: expected finite numbers.*nan.* at 3"),
        ("data/action", MIDDLE["data/action"] - 1, "data/action: expected pixels on the board"),
        ("data/action", without_last_step(), "episode_ends must rise"),
        ("meta/episode_ends", np.array([20, 10, 43]), "episode_ends must rise"),
        ("meta/episode_ends", np.array([20, 29]), "episode_ends must rise"),
    ],
)
def test_unusable_arrays_are_refused_by_file_and_name(tmp_path, name, array, message):
    arrays = {**MIDDLE, name: array}
    path = write(tmp_path / "bad.zarr.zip", {k: a for k, a in arrays.items() if a is not None})
    with pytest.raises(ValueError, match=rf"bad\.zarr\.zip: .*{message}"):
        load_demonstrations({"middle": path})


def test_what_is_no_replay_buffer_is_refused(tmp_path):
    text, archive, folder = (tmp_path / name for name in ("text.zip", "other.npz", "folder"))
    text.write_text("no zip")
    np.savez(archive, state=np.zeros(3))
    folder.mkdir()
    newer = tmp_path / "newer.zarr"
    zarr.create_group(newer, zarr_format=3)
    for path in (text, archive, folder, newer):
        with pytest.raises(ValueError, match=f"{path.name}: not a zarr"):
            load_demonstrations({"middle": path})
    with pytest.raises(FileNotFoundError, match=r"nothing\.zip: not found; expected a zarr"):
        load_demonstrations({"middle": tmp_path / "nothing.zip"})
