"""Result files: what was measured, with which command, on which machine."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

_TABLE_WIDTH = 110


def console() -> Console:
    """For people, on stderr; wide enough for the tables even where the terminal is not."""
    found = Console(stderr=True)
    return Console(stderr=True, width=max(found.width, _TABLE_WIDTH))


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and the versions that decide speed."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ("torch", "numpy", "onnxruntime-gpu", "pyzmq", "mujoco", "pymunk")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def _shown(value: object) -> str:
    """Paths as seen from here: where a checkout lies is nobody's business."""
    if isinstance(value, Path) and value.is_relative_to(Path.cwd()):
        value = value.relative_to(Path.cwd())
    return str(value)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` in the end; if that fails, nothing does.

    Raises:
        OSError: it cannot be written, e.g. since the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        msg = (
            f"{path}: cannot be written ({error.strerror or error}); what was there before is "
            "untouched; make room, or name another folder with --out"
        )
        raise OSError(msg) from error


def write_results(
    folder: Path, name: str, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Path:
    """Write `folder/name.json` in one piece: command, machine, configuration, one row a case.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    path = folder / f"{name}.json"
    content = {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "config": config,
        "rows": rows,
    }
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1, default=_shown) + "\n", "utf-8")
    return path
