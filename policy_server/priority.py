"""Before other programs on the processor, where the system allows it.

A program that computes without pause gets whole time slices of some milliseconds, and between two
of them the server would stand still in the middle of an answer. Priorities are those of threads
(Linux), and a thread passes its own on to those that it starts.

Where the kernel groups programs by session (autogroup, the default of most desktop systems), nice
values count only between programs of one session, and each session has a nice value of its own.
Where it groups them by control group (containers, many services), the groups' weights count first.
"""

from __future__ import annotations

import logging
import os
import threading
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
    if nice and leads_session():
        set_session_nice(nice)
    return True


def set_session_nice(nice: int, process: int | str = "self") -> None:
    """Give a process's session a nice value, where the scheduler tells sessions apart."""
    try:
        Path(f"/proc/{process}/autogroup").write_text(str(nice), "ascii")
    except FileNotFoundError:  # it does not
        return
    except OSError as error:
        log.warning("the session's own nice value stays as it is: %s", error)


def leads_session() -> bool:
    """Whether this process began its session: what holds for it was meant for no other program."""
    return os.getsid(0) == os.getpid()
