"""Which backend runs the network here, and on how many threads: what is left open is measured."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch

from models import checkpoint
from models.export import export_graphs
from models.policy import DiffusionPolicy
from policy_server.backends.onnx_backend import OnnxBackend
from policy_server.backends.protocol import Backend, BackendSettings
from policy_server.backends.torch_backend import TorchBackend
from policy_server.calibration import measure_calls
from policy_server.cores import usable_cores

log = logging.getLogger(__name__)

BackendName = Literal["auto", "onnx", "onnx-int8", "torch"]
GRAPHS = {"auto": checkpoint.ONNX, "onnx": checkpoint.ONNX, "onnx-int8": checkpoint.INT8_ONNX}
"""Which file a backend must find, unless it is exported first."""
WORTH_DOUBLING = 1.4
"""Twice the threads must be so much faster: they take cores from whatever else runs here, and
a call ends only when none of them is held up any more."""
_LONG_S = 0.05
"""Calls of more requests than the first that takes so long are not timed."""


def make_backend(
    name: BackendName,
    policy: DiffusionPolicy,
    folder: Path,
    *,
    num_threads: int | None,
    max_requests: int,
) -> Backend:
    """A backend, ready to run; of those that the arguments leave open, the fastest here.

    Args:
        name: "auto" takes torch or onnx, whichever has the faster guided step on one thread, or
            on as many as are asked for; never int8 weights, whose answers are others.
        policy: in evaluation mode.
        folder: checkpoint folder; its graphs are used if the manifest lists them.
        num_threads: of a call; None doubles them from one as long as that is worth it and leaves
            a processor to everything else.
        max_requests: rows that a call must be able to hold.
    """
    with ExitStack() as stack:
        graphs, needed = folder, GRAPHS.get(name)
        if needed is not None and needed not in checkpoint.read_manifest(folder).files:
            graphs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            export_graphs(policy.eval(), graphs, int8=needed == checkpoint.INT8_ONNX)

        def make(kind: str, threads: int) -> Backend:
            settings = BackendSettings(threads, max_requests)
            if kind == "torch":
                return TorchBackend(policy, settings)
            return OnnxBackend(policy, settings, graphs, int8=kind == "onnx-int8")

        kinds = ("torch", "onnx") if name == "auto" else (name,)
        made = [make(kind, num_threads or 1) for kind in kinds]
        if num_threads is not None and len(made) == 1:
            return made[0]
        best = made[0]
        best_s = _guided_calls_s(best)
        for other in made[1:]:
            other_s = _guided_calls_s(other)
            if _gain(best_s, other_s) > 1:
                best, best_s = other, other_s
        while num_threads is None and 2 * best.num_threads < usable_cores():
            wider = make(best.name, 2 * best.num_threads)
            wider_s = _guided_calls_s(wider)
            if _gain(best_s, wider_s) < WORTH_DOUBLING:
                break
            best, best_s = wider, wider_s
    if best.name == "torch":
        torch.set_num_threads(best.num_threads)  # it is one number for all, that of the last made
    return best


def _guided_calls_s(backend: Backend) -> list[float]:
    """Seconds of guided calls of 1, 2, 4 and 8 requests; fewer if the larger ones take long."""
    seconds: list[float] = []
    for _, call_s in measure_calls(backend, time.monotonic, 4):
        seconds.append(call_s)
        if call_s > _LONG_S:
            break
    told = ", ".join(f"{call_s * 1e3:.2f}" for call_s in seconds)
    log.info("%s, threads: %d, guided calls: %s ms", backend.name, backend.num_threads, told)
    return seconds


def _gain(before_s: Sequence[float], after_s: Sequence[float]) -> float:
    """How many times as fast the second is: both a lone robot and a fleet count."""
    sizes = min(len(before_s), len(after_s))  # else one would be judged by larger calls
    largest = 1 << (sizes - 1)
    before, after = (s[0] + s[sizes - 1] / largest for s in (before_s, after_s))
    return before / after
