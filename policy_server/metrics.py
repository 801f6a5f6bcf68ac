"""What the server does, in numbers, for Prometheus; and whether it is alive. HTTP on loopback.

Every request ends in one reply, so replies are what is counted. What only changes slowly is read
when somebody asks, not written in the loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from operator import attrgetter
from threading import Thread
from types import TracebackType
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, make_wsgi_app

from client.messages import ActionChunk, ErrorReply, Reply
from policy_server.cost_model import CostModel

log = logging.getLogger(__name__)

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_COUNTS = (1, 2, 3, 5, 7, 10, 15, 25, 50, 100, 250, 500, 1000)
_STAGES = ("queue", "encode", "denoise", "total")
_ALIVE_WITHIN_S = 1.0
_POLL_S = 0.1
"""Whoever ends the server waits at most so long for this."""


class Metrics:
    """Counts replies.

    Args:
        model_id: of the checkpoint.
        cost: read whenever somebody asks for the metrics.
        clock: monotonic, seconds.
    """

    def __init__(
        self, model_id: str, cost: CostModel, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._alive_s = clock()

        def name(of: str) -> str:
            return f"policy_server_{of}"

        self._cost = cost
        self._model = Info(name("model"), "What is served.", registry=self.registry)
        self._model.info({"model_id": model_id})
        self._requests = Counter(
            name("requests"),
            "Requests by what became of them: on_time, late, or the code of the error.",
            ["outcome"],
            registry=self.registry,
        )
        self._on_time = self._requests.labels("on_time")
        self._late = self._requests.labels("late")
        seconds = Histogram(
            name("seconds"),
            "Time of answered requests in the server, by stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._seconds = {stage: seconds.labels(stage) for stage in _STAGES}
        self._steps = Histogram(
            name("num_steps"),
            "Denoising steps of answered requests.",
            buckets=_COUNTS,
            registry=self.registry,
        )
        self._rows = Histogram(
            name("rows_per_call"),
            "Requests in the network calls of an answered one, on average.",
            buckets=_COUNTS,
            registry=self.registry,
        )
        for of, text, attribute in (
            ("slowdown", "Time of network calls now over calibrated.", "slowdown"),
            ("stall_seconds", "Pauses that plans allow for.", "stall_s"),
            ("encode_seconds", "Predicted encoding.", "encode.estimate_s"),
            ("prediction_error", "Stretches of calls over predicted, less 1.", "error"),
        ):
            read = attrgetter(f"_cost.{attribute}")  # of whichever model is served then
            Gauge(name(of), text, registry=self.registry).set_function(partial(read, self))

    def replace_model(self, model_id: str, cost: CostModel) -> None:
        """Another model is served from now on."""
        self._cost = cost
        self._model.info({"model_id": model_id})

    def turned(self) -> None:
        """The loop has come round once more."""
        self._alive_s = self._clock()

    @property
    def alive(self) -> bool:
        """Whether the loop came round within the last second."""
        return self._clock() - self._alive_s <= _ALIVE_WITHIN_S

    def replied(self, reply: Reply) -> None:
        """Count what a reply tells."""
        if isinstance(reply, ActionChunk):
            (self._on_time if reply.deadline_met else self._late).inc()
            for stage, seconds in self._seconds.items():
                seconds.observe(getattr(reply.timing, f"{stage}_s"))
            self._steps.observe(reply.num_steps)
            self._rows.observe(reply.rows_per_call)
        elif isinstance(reply, ErrorReply):
            self._requests.labels(reply.code).inc()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Nothing: a line for each scrape is noise."""


class MetricsServer(AbstractContextManager["MetricsServer"]):
    """`/metrics` for Prometheus, and `/healthz`: 200 while the loop comes round, else 503.

    Args:
        metrics: what is told.
        port: on 127.0.0.1; 0 takes a free one.

    Attributes:
        port: the real one.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, metrics: Metrics, port: int) -> None:
        metrics_app = make_wsgi_app(metrics.registry)

        def app(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            if environment.get("PATH_INFO") != "/healthz":
                body: Iterable[bytes] = metrics_app(environment, start)
                return body
            status = "200 OK" if metrics.alive else "503 Service Unavailable"
            start(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [b"ok\n" if metrics.alive else b"the loop stands still\n"]

        try:
            self._server = make_server("127.0.0.1", port, app, handler_class=_Quiet)
        except OSError as error:
            msg = f"--metrics-port {port}: {error}"
            raise OSError(msg) from error
        self.port = int(self._server.server_port)
        serve = partial(self._server.serve_forever, _POLL_S)
        self._thread = Thread(target=serve, name="metrics", daemon=True)
        self._thread.start()
        log.info("metrics at http://127.0.0.1:%d/metrics, health at /healthz", self.port)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
