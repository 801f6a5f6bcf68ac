"""A process of ours that works until it has ended, and writes a JSON object on its last line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any


class ReportingProcess:
    """One of them.

    Args:
        who: for messages, e.g. "a robot".
        process: its stdin and stdout are pipes.
        ends_within_s: after its stdin is closed.
    """

    def __init__(self, who: str, process: subprocess.Popen[str], ends_within_s: float) -> None:
        self._who, self._process, self._ends_within_s = who, process, ends_within_s

    @property
    def stdout(self) -> IO[str]:
        """What it has written, and nobody read."""
        stdout = self._process.stdout
        assert stdout is not None
        return stdout

    def report(self) -> dict[str, Any]:
        """Close its stdin; what it says when it has ended.

        Raises:
            RuntimeError: it failed, or did not end.
        """
        try:
            written, _ = self._process.communicate(timeout=self._ends_within_s)
        except subprocess.TimeoutExpired:
            msg = f"{self._who} did not end within {self._ends_within_s:g} s"
            raise RuntimeError(msg) from None
        if self._process.returncode:
            msg = f"{self._who} failed; see above"
            raise RuntimeError(msg)
        report: dict[str, Any] = json.loads(written.splitlines()[-1])
        return report


@contextmanager
def piped_process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Begin a command whose stdin and stdout are pipes; killed at the end, if it has not ended."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us; we end it
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def reporting_process(
    who: str, module: str, *arguments: object, ends_within_s: float
) -> Iterator[ReportingProcess]:
    """Begin `python -m module arguments`; killed at the end, if it has not ended."""
    with piped_process([sys.executable, "-m", module, *map(str, arguments)]) as process:
        yield ReportingProcess(who, process, ends_within_s)
