"""The server with one of its real-time measures left out, or with one more; for comparison.

`python -m benchmarks.hygiene_server --change NAME …`, else as `python -m policy_server`. A measure
is left out by making the call that takes it do nothing.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
import tyro

from policy_server import server
from policy_server.server import ServerConfig, serve

Change = Literal["none", "no_priority", "no_freeze", "switching", "threads", "pinned", "locked"]
_MCL_CURRENT, _MCL_FUTURE = 1, 2


@dataclass(frozen=True)
class HygieneServerConfig(ServerConfig):
    """What `python -m benchmarks.hygiene_server` takes: the server's options, and one more.

    Attributes:
        change: no_priority: nice stays 0; no_freeze: the garbage collector sees everything;
            switching: Python's threads take turns every 0.5 ms instead of 5; threads: torch, which
            encodes instructions, has one thread a core; pinned: to the last core that may be used;
            locked: all memory is touched and stays.
    """

    change: Change = "none"


def _leave_out(module: ModuleType, name: str) -> None:
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    setattr(module, name, nothing)


def apply(change: Change) -> None:
    """Make the change, before anything else is done.

    Raises:
        OSError: memory may not be locked here.
    """
    match change:
        case "none":
            pass
        case "no_priority":
            _leave_out(server, "set_nice")
        case "no_freeze":
            _leave_out(gc, "freeze")
        case "switching":
            sys.setswitchinterval(0.0005)
        case "threads":
            _leave_out(torch, "set_num_threads")
        case "pinned":
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        case "locked":
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE):
                raise OSError(ctypes.get_errno(), "mlockall: allow it with LimitMEMLOCK=infinity")


def main() -> None:
    """Entry point."""
    config = tyro.cli(HygieneServerConfig, prog="python -m benchmarks.hygiene_server")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    apply(config.change)
    try:
        serve(config)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
