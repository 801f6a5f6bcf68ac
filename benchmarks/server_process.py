"""A real server in a process of its own, for measurements and tests."""

from __future__ import annotations

import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

READY_WITHIN_S = 120.0
STOPPED_WITHIN_S = 10.0
_LAST_LINES = 8


@dataclass(frozen=True)
class ServerProcess:
    """A server that has said it is ready.

    Attributes:
        address: where it listens.
        process: to signal or kill it.
        stderr: the file that its log goes to.
    """

    address: str
    process: subprocess.Popen[str]
    stderr: IO[str]

    @property
    def log(self) -> str:
        """What it has logged so far."""
        fd = self.stderr.fileno()  # of which it has the other end, and the position with it
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    @property
    def cpu_s(self) -> float | None:
        """Processor time used so far, all threads together; None where that cannot be known."""
        clock = (~self.process.pid << 3) | 2  # as clock_getcpuclockid(3) gives it on Linux
        try:
            return time.clock_gettime(clock)
        except OSError:
            return None

    @property
    def resident_bytes(self) -> int | None:
        """Memory in use; None where there is no /proc."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1]
        except OSError:
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running_server(
    checkpoint: Path,
    *options: str,
    bind: str = "tcp://127.0.0.1:*",
    module: str = "policy_server",
) -> Iterator[ServerProcess]:
    """Start a server, wait for its `ready` line, stop it at the end.

    Args:
        checkpoint: folder it serves.
        options: further ones of `python -m policy_server`.
        bind: a free port if not given.
        module: another one that takes the same options and says the same when it is ready.

    Raises:
        RuntimeError: it ended, or was not ready within two minutes; with what it wrote last.
    """
    command = [sys.executable, "-m", module, "--checkpoint", str(checkpoint), "--bind", bind]
    with running_command([*command, *options]) as server:
        yield server


@contextmanager
def running_command(command: Sequence[str]) -> Iterator[ServerProcess]:
    """Any server that writes `ready ADDRESS …` first; see `running_server`."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C is for us; we stop it in order
    )
    try:
        line = _first_line(process)
        if not line.startswith("ready "):
            process.kill()
            process.wait()
            log.seek(0)
            last = "".join(log.readlines()[-_LAST_LINES:])
            msg = f"the server did not become ready: {shlex.join(command)}\n{last}"
            raise RuntimeError(msg)
        yield ServerProcess(line.split()[1], process, log)
    finally:
        _stop(process)
        log.close()


def _first_line(process: subprocess.Popen[str]) -> str:
    """What it writes first; empty if it ends, or writes nothing in time."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        return lines.get(timeout=READY_WITHIN_S)
    except queue.Empty:
        return ""


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
