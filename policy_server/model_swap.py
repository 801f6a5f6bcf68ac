"""Another checkpoint in place of the one that is served, without a break: SIGHUP asks for it.

What takes long must not hold up the loop that serves: the graphs are exported by a process of its
own, at a lower priority; the rest (reading weights, building sessions, calibrating) is done on
a thread. That has the server's own priority, since it holds the interpreter's lock now and then,
for well below a millisecond at a time.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from client.messages import Metadata
from client.specs import PolicySpec
from models import checkpoint
from models.checkpoint import CheckpointError
from policy_server.backends.choice import GRAPHS
from policy_server.cost_model import CostModel
from policy_server.priority import set_session_nice
from policy_server.requests import Scheduler

log = logging.getLogger(__name__)

_NICE = 5
"""Of the export: after the robots and everybody else, but not starved by them."""


class ReadyModel(NamedTuple):
    """A policy that can be asked now: loaded, calibrated and warm.

    Attributes:
        engine: with nothing inside.
        metadata: what a server says of it.
        cost: what its calls take.
        num_threads: of a call.
    """

    engine: Scheduler
    metadata: Metadata
    cost: CostModel
    num_threads: int


class ModelSwap:
    """Gets the checkpoint that lies at the served path now ready, when asked to.

    Args:
        folder: of the checkpoint.
        serving: of the model that is served.
        load: makes a checkpoint's model ready; called on a thread.
    """

    def __init__(self, folder: Path, serving: Metadata, load: Callable[[Path], ReadyModel]) -> None:
        self._folder = folder
        self._serving = serving
        self._load = load
        self._asked = False
        self._loading: Future[ReadyModel] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._export: subprocess.Popen[str] | None = None
        self._copy: Path | None = None
        self._closed = False

    def ask(self) -> None:
        """Have it loaded; asked for while it is being loaded, it is loaded once more after that.

        May be called by a signal handler.
        """
        self._asked = True

    def look(self) -> ReadyModel | None:
        """The model to serve from now on, once it is ready; called between two network calls."""
        if self._loading is None:
            if self._asked:
                self._asked = False
                log.info("%s: loading, %s goes on", self._folder, self._serving.model_id)
                self._loading = self._worker.submit(self._ready)
            return None
        if not self._loading.done():
            return None
        loading, self._loading = self._loading, None
        error = loading.exception()
        if error is not None:
            expected = isinstance(error, CheckpointError | OSError | ValueError)
            why = "%s: not taken, %s goes on: %s"
            trace = None if expected else error
            log.error(why, self._folder, self._serving.model_id, error, exc_info=trace)
            return None
        ready = loading.result()
        log.info("%s in place of %s", ready.metadata.model_id, self._serving.model_id)
        self._serving = ready.metadata
        return ready

    def close(self) -> bool:
        """Give up what is being loaded, without waiting for it.

        Returns:
            Whether the thread that loads still runs: it may be in the middle of native code, which
            nothing can stop.
        """
        self._closed = True
        if self._export is not None:
            self._export.kill()
            self._export.wait()
        self._worker.shutdown(wait=False, cancel_futures=True)
        still_loading = self._loading is not None and not self._loading.done()
        if still_loading and self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)
        return still_loading

    def _ready(self) -> ReadyModel:
        """On the thread: a copy first, so that what is checked is what is loaded.

        Raises:
            CheckpointError: it cannot be used, or is for other robots.
            OSError: it cannot be copied.
        """
        with tempfile.TemporaryDirectory(prefix="policy_server_") as name:
            copy = self._copy = Path(name)
            try:
                shutil.copyfile(self._folder / checkpoint.MANIFEST, copy / checkpoint.MANIFEST)
                manifest = checkpoint.read_manifest(copy)
                different = differences(self._serving.spec, manifest.spec)
                if different:
                    raise CheckpointError(f"is for another robot: {'; '.join(different)}")
                for file in manifest.files:
                    shutil.copyfile(self._folder / file, copy / Path(file).name)
                graph = GRAPHS.get(self._serving.backend)
                if graph is not None and graph not in manifest.files:
                    self._export_graphs(copy, int8=graph == checkpoint.INT8_ONNX)
                return self._load(copy)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(name, str(self._folder))) from error

    def _export_graphs(self, folder: Path, *, int8: bool) -> None:
        command = [sys.executable, "-m", "models", "export", str(folder)]
        command += ["--int8"] if int8 else []
        self._export = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the server, which ends this one
        )
        pid = self._export.pid
        os.setpriority(os.PRIO_PROCESS, pid, max(_NICE, os.getpriority(os.PRIO_PROCESS, pid)))
        set_session_nice(_NICE, pid)
        if self._closed:
            self._export.kill()
        _, stderr = self._export.communicate()
        if self._export.returncode:
            last = stderr.strip().splitlines()[-1:]
            raise CheckpointError(" ".join(last).removeprefix("error: ") or "export was ended")


def differences(served: PolicySpec, other: PolicySpec) -> list[str]:
    """What another specification has differently, field by field, for people."""
    before, after = served.to_dict(), other.to_dict()
    return [
        f"spec.{field}: expected {before[field]}, got {after[field]}"
        for field in before
        if before[field] != after[field]
    ]
