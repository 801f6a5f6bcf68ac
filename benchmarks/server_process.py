"""A real server in a process of its own, for measurements and tests."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

READY_WITHIN_S = 120.0
STOPPED_WITHIN_S = 10.0


@dataclass(frozen=True)
class ServerProcess:
    """A server that has said it is ready.

    Attributes:
        address: where it listens.
        process: to signal or kill it.
    """

    address: str
    process: subprocess.Popen[str]


@contextmanager
def running_server(
    checkpoint: Path,
    *options: str,
    bind: str = "tcp://127.0.0.1:*",
    log: IO[str] | None = None,
) -> Iterator[ServerProcess]:
    """Start a server, wait for its `ready` line, stop it at the end.

    Args:
        checkpoint: folder it serves.
        options: further ones of `python -m policy_server`.
        bind: a free port if not given.
        log: where its stderr goes; discarded if not given.

    Raises:
        RuntimeError: it ended, or was not ready within two minutes; with what it wrote last.
    """
    command = [sys.executable, "-m", "policy_server", "--checkpoint", str(checkpoint)]
    process = subprocess.Popen(
        [*command, "--bind", bind, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if log is None else log,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C is for us; we stop it in order
    )
    try:
        line = _first_line(process, command)
        yield ServerProcess(line.split()[1], process)
    finally:
        _stop(process)


def _first_line(process: subprocess.Popen[str], command: Sequence[str]) -> str:
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=READY_WITHIN_S)
    except queue.Empty:
        line = ""
    if not line.startswith("ready "):
        msg = f"the server did not become ready; see its log: {' '.join(command)}"
        raise RuntimeError(msg)
    return line


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
