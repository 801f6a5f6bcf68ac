"""Films: how long they are, files, captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from client.sims.film import caption, film, save_pictures

FRAMES = [np.full((60, 80, 3), shade, dtype=np.uint8) for shade in (0, 100, 200)]


class Countdown:
    """Over after ten ticks."""

    ticks = 0

    def step(self, action: np.ndarray) -> None:
        self.ticks += int(action[0])

    def outcome(self, task: str) -> str | None:
        return task if self.ticks >= 10 else None


def test_an_episode_is_shown_from_its_start_to_some_pictures_after_its_end() -> None:
    shown = film(
        Countdown(),
        "asked",
        lambda _: np.ones(1, np.float32),
        lambda simulation: np.full((2, 2, 3), simulation.ticks, np.uint8),
        ticks_per_frame=4,
        after_frames=2,
    )
    assert [int(picture[0, 0, 0]) for picture in shown] == [0, 4, 8, 12, 16]


def test_a_gif_plays_all_pictures_in_real_time_and_a_png_is_the_last(tmp_path: Path) -> None:
    save_pictures(tmp_path / "a.gif", FRAMES, 0.05)
    with Image.open(tmp_path / "a.gif") as gif:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(gif)] == [50] * 3
    save_pictures(tmp_path / "a.png", FRAMES, 0.05)
    with Image.open(tmp_path / "a.png") as png:
        np.testing.assert_array_equal(np.asarray(png), FRAMES[-1])
    with pytest.raises(ValueError, match=r"\.gif"):
        save_pictures(tmp_path / "a.mp4", FRAMES, 0.05)


def test_a_caption_changes_the_lower_edge_only() -> None:
    changed = (caption(FRAMES[1], "open it") != FRAMES[1]).any(axis=(1, 2))
    assert changed[25:].any()
    assert not changed[:25].any()
