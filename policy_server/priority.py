"""Before other programs on the processor, where the system allows it.

A program that computes without pause gets whole time slices of some milliseconds, and between two
of them the server would stand still in the middle of an answer. Priorities are those of threads
(Linux), and a thread passes its own on to those that it starts.

Where the kernel groups programs by session (autogroup, the default of most desktop systems), nice
values count only between programs of one session, and each session has a nice value of its own.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


def set_nice(nice: int) -> bool:
    """Give this thread a nice value, -20 (first) .. 19; says in the log if it may not.

    The session gets it, too, if it is this process's own. The thread that encodes instructions has
    it as well: whoever holds the interpreter's lock must not be stopped by a neighbour.

    Returns:
        Whether it has it now.
    """
    if not hasattr(os, "setpriority"):
        return False
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    except PermissionError:
        log.warning(
            "--nice %d: not permitted here, so a busy neighbour will cost steps; allow it with "
            "LimitNICE=%d (systemd), ulimit -e %d or CAP_SYS_NICE, or choose --nice 0",
            *(nice, nice, 20 - nice),
        )
        return False
    if leads_session():
        with suppress(OSError):  # absent where sessions do not count
            Path("/proc/self/autogroup").write_text(str(nice), "ascii")
    return True


def leads_session() -> bool:
    """Whether this process began its session: what holds for it was meant for no other program."""
    return os.getsid(0) == os.getpid()
