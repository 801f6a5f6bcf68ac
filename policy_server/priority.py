"""Before other programs on the processor, where the system allows it.

A program that computes without pause gets whole time slices of some milliseconds, and between two
of them the server would stand still in the middle of an answer. Priorities are those of threads
(Linux), and a thread passes its own on to those that it starts.
"""

from __future__ import annotations

import logging
import os
import threading

log = logging.getLogger(__name__)


def set_nice(nice: int) -> bool:
    """Give this thread a nice value, -20 (first) .. 19; says in the log if it may not.

    Returns:
        Whether it has it now.

    The thread that encodes instructions has it, too: whoever holds the interpreter's lock must not
    be stopped by a neighbour.
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
    return True
