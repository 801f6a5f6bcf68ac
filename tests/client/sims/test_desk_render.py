"""Pictures of the desk: what a policy sees, and the error where nothing draws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from client.sims.desk import render
from client.sims.desk.render import OVER_SHOULDER, Camera, NoDisplayError
from client.sims.desk.simulation import Desk, DeskStart
from client.sims.desk.spec import FIXTURES, Fixture


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk()


def shown(desk: Desk) -> npt.NDArray[np.int64]:
    return render.policy_camera().picture(desk).astype(np.int64)


def draws() -> bool:
    try:
        render.policy_camera()
    except NoDisplayError:
        return False
    return True


needs_drawing = pytest.mark.skipif(not draws(), reason="nothing draws without a display here")


@needs_drawing
@pytest.mark.parametrize("fixture", FIXTURES, ids=[fixture.body for fixture in FIXTURES])
def test_both_ends_of_every_object_look_different_in_the_middle_of_the_picture(
    desk: Desk, fixture: Fixture
) -> None:
    """Wherever it stands: so much as the crop that a policy sees shows what has been done."""
    joint = desk.model.joint(fixture.joint)
    start = desk.sample_start(np.random.default_rng(0))
    for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        places = start.places.copy()
        places[FIXTURES.index(fixture), :2] = fixture.place + fixture.spread_m * np.array(corner)
        desk.reset(DeskStart(start.physics, places))
        ends = []
        for end in joint.range:
            desk.data.qpos[joint.qposadr[0]] = end
            ends.append(shown(desk))
        differs = np.abs(ends[0] - ends[1]).max(axis=-1) > 30
        rows, columns = np.nonzero(differs)
        assert len(rows) > 15
        assert 6 <= rows.min() <= rows.max() < 90
        assert 6 <= columns.min() <= columns.max() < 90


@needs_drawing
def test_up_is_up_and_left_is_where_it_is_for_somebody_who_faces_the_robot(desk: Desk) -> None:
    desk.reset(desk.sample_start(np.random.default_rng(0)))
    seen = shown(desk)
    green = (seen * [-1, 2, -1]).sum(axis=-1) > 120  # the drawer, at the robot's left
    assert np.nonzero(green)[1].mean() > 60
    red = (seen * [2, -1, -1]).sum(axis=-1) > 120  # the arm, which reaches down
    assert red[:20].any()
    assert not red[-20:].any()


@needs_drawing
def test_taking_a_picture_changes_nothing_and_one_camera_sees_every_desk(desk: Desk) -> None:
    starts = [desk.sample_start(np.random.default_rng(seed)) for seed in (1, 2)]
    desk.reset(starts[0])
    first, other = shown(desk), Desk()
    other.reset(starts[1])
    assert not np.array_equal(shown(other), first)
    plain = Desk()
    plain.reset(starts[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)):
        desk.step(action)
        shown(desk)
        plain.step(action)
    np.testing.assert_array_equal(desk.state(), plain.state())
    desk.reset(starts[0])
    np.testing.assert_array_equal(shown(desk), first)


class NoDriver:
    """What `mujoco.egl` is on a machine with the library and nothing behind it."""

    @staticmethod
    def GLContext(width: int, height: int) -> None:  # noqa: N802 - MuJoCo's name
        raise ImportError("Cannot initialize a EGL device display.")


@pytest.mark.parametrize("library", [None, "libEGL.so.1"])
def test_without_anything_to_draw_with_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, library: str | None
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(render, "find_library", lambda _: library)
    monkeypatch.setattr(render, "import_module", lambda _: NoDriver)
    with pytest.raises(NoDisplayError, match="apt-get install libegl1"):
        Camera(OVER_SHOULDER, width=20, height=20)
