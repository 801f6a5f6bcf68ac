"""Pictures, as far as any machine can: files, captions, and the error without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from client.sims.desk.render import Camera, caption, save_pictures
from client.sims.desk.simulation import Desk

FRAMES = [np.full((60, 80, 3), shade, dtype=np.uint8) for shade in (0, 100, 200)]


def test_a_gif_plays_all_pictures_in_real_time_and_a_png_is_the_last(tmp_path: Path) -> None:
    save_pictures(tmp_path / "a.gif", FRAMES)
    with Image.open(tmp_path / "a.gif") as gif:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(gif)] == [50] * 3
    save_pictures(tmp_path / "a.png", FRAMES)
    with Image.open(tmp_path / "a.png") as png:
        np.testing.assert_array_equal(np.asarray(png), FRAMES[-1])
    with pytest.raises(ValueError, match=r"\.gif"):
        save_pictures(tmp_path / "a.mp4", FRAMES)


def test_a_caption_changes_the_lower_edge_only() -> None:
    changed = (caption(FRAMES[1], "open it") != FRAMES[1]).any(axis=(1, 2))
    assert changed[25:].any()
    assert not changed[:25].any()


def test_without_a_display_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(RuntimeError, match="MUJOCO_GL=egl"):
        Camera(Desk())
