"""How many processors this process may use, by what the system says of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Processors that it may run on at one time, a container's quota rounded down; at least 1.

    Args:
        root: "/", or a folder with the same files.
    """
    cores, quota = allowed_cores() or 1, quota_cores(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def allowed_cores() -> int | None:
    """All limits but quotas considered; None if that cannot be known."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def quota_cores(root: Path) -> float | None:
    """Processor time a second that a container may use; None without a limit."""
    limits = [
        limit
        for folder in control_groups(root)
        for limit in (_quota_v2(folder), _quota_v1(folder))
        if limit is not None
    ]
    return min(limits, default=None)


def read_text(path: Path) -> str | None:
    """A kernel's file; None where it is missing or may not be read."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None


def control_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, up to the topmost."""
    mounted = root / "sys/fs/cgroup"
    for line in (read_text(root / "proc/self/cgroup") or "0::/").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "" or "cpu" in controllers.split(","):
            base = mounted / ("cpu" if controllers else "")
            # inside a container the path is often that of the host, which is not there
            inner = base / path.strip("/")
            yield inner
            yield from (parent for parent in inner.parents if parent.is_relative_to(base))


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (read_text(folder / "cpu.max") or "max").partition(" ")
    return None if quota == "max" else int(quota) / int(period or "100000")


def _quota_v1(folder: Path) -> float | None:
    quota = int(read_text(folder / "cpu.cfs_quota_us") or "-1")
    period = int(read_text(folder / "cpu.cfs_period_us") or "100000")
    return None if quota < 0 else quota / period
