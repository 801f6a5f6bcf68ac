"""Servers to compare with: the same wire, service, reactor, model and backend, another engine.

`python -m benchmarks.baseline_server --engine fifo|null …`, else as `python -m policy_server`.
What differs between two measurements is then the scheduling, and nothing else.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro

from client.errors import CancelledError, OverloadedError, ServerFaultError
from models.guidance import scale_at
from models.samplers import draw_noise
from policy_server.backends.protocol import Backend
from policy_server.cost_model import CostModel
from policy_server.engine import SHUTTING_DOWN, EngineLimits
from policy_server.planner import Planner
from policy_server.requests import (
    Answer,
    EngineRequest,
    Outcome,
    Refusal,
    RequestKey,
    Scheduler,
)
from policy_server.server import ServerConfig, serve

BaselineName = Literal["fifo", "null"]


@dataclass(frozen=True)
class BaselineConfig(ServerConfig):
    """What `python -m benchmarks.baseline_server` takes: the server's options, and these.

    Attributes:
        engine: fifo, one request after another; or null, zeros without any network.
        default_steps: of fifo, for requests that leave it open.
        max_waiting: more are refused. Servers of this kind have no limit, or one that is never
            met; the default is in effect none, and keeps a run of minutes from filling the memory.
    """

    engine: BaselineName = "fifo"
    default_steps: int = 10
    max_waiting: int = 4096

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        for name in ("default_steps", "max_waiting"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)


class _Queue:
    """Requests in the order of their arrival; the half of a `Scheduler` that both engines share."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[EngineRequest] = deque()

    @property
    def busy(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def submit(self, request: EngineRequest) -> list[Refusal]:
        """Let it wait, whatever its deadline; refuse it only if the queue is full."""
        if len(self._waiting) >= self._max_waiting:
            msg = f"queue: {self._max_waiting} requests are waiting already; send fewer or slower"
            return [Refusal(request, OverloadedError(msg))]
        self._waiting.append(request)
        return []

    def cancel(self, key: RequestKey) -> list[Refusal]:
        """Give up a request that nobody waits for any more; unknown ones are none."""
        cancelled = [request for request in self._waiting if request.key == key]
        for request in cancelled:
            self._waiting.remove(request)
        return [Refusal(r, CancelledError("cancelled by the client")) for r in cancelled]

    def drain(self) -> list[Refusal]:
        """Refuse whatever waits."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return [Refusal(request, OverloadedError(SHUTTING_DOWN)) for request in waiting]


class FifoEngine(_Queue):
    """One request after another in the order of arrival, a fixed number of steps each.

    What policy servers commonly do. A request is denoised in one go, without a look at the socket
    in between: that costs pings their time and saves the requests some.
    """

    def __init__(
        self,
        backend: Backend,
        planner: Planner,
        clock: Callable[[], float],
        default_steps: int,
        max_waiting: int,
    ) -> None:
        """Start with an empty queue.

        Args:
            backend: its first slot and row are used.
            planner: of the checkpoint that the backend evaluates.
            clock: monotonic, seconds.
            default_steps: for requests that leave it open; more than T are T.
            max_waiting: more are refused.
        """
        super().__init__(max_waiting)
        self._backend = backend
        self._planner = planner
        self._clock = clock
        self._default_steps = default_steps
        self._taken: EngineRequest | None = None

    def advance(self) -> list[Outcome]:
        """Answer the request that has waited longest."""
        if not self._waiting:
            return []
        self._taken = self._waiting.popleft()
        outcome = self._serve(self._taken)
        self._taken = None
        return [outcome]

    def fail(self, error: ServerFaultError) -> list[Refusal]:
        """Give up the request that `advance` raised on."""
        taken, self._taken = self._taken, None
        return [] if taken is None else [Refusal(taken, error)]

    def _serve(self, request: EngineRequest) -> Outcome:
        backend, buffers = self._backend, self._backend.buffers
        begun_s = self._clock()
        last = self._planner.steps.max_steps
        steps = request.num_steps or self._default_steps
        plan = self._planner.plan(steps, last - 1, request.eta)
        backend.encode([0], [request.observation], [request.instruction])
        x_t, x0_prev, noise = buffers.x_t[0], buffers.x0_prev[0], buffers.noise[0]
        x_t[:] = draw_noise(request.seed, last, x_t.shape)
        x0_prev[:] = 0
        encoded_s = self._clock()
        timesteps = tuple(plan.timesteps.tolist())
        scales = scale_at(request.guidance_scale, plan.acts)
        nfe = 0
        for i, (timestep, coefficients) in enumerate(
            zip(timesteps, plan.coefficients, strict=True)
        ):
            if not i or scales[i] != scales[i - 1]:
                network_rows = buffers.lay_out(scales[i : i + 1], np.zeros(1, np.int64))
            nfe += network_rows
            buffers.timesteps[0] = timestep
            buffers.coefficients[0] = coefficients
            if coefficients[3] != 0:
                noise[:] = draw_noise(request.seed, timestep, noise.shape)
            backend.step(1, network_rows)
            x_t[:] = buffers.x_prev[0]
            x0_prev[:] = buffers.x0[0]
        denoised_s = self._clock()
        if not np.isfinite(x_t).all():
            error = ServerFaultError("the model produced a non-finite action; nothing was sent")
            return Refusal(request, error)
        actions = backend.to_actions(buffers.x_t[:1])[0]
        return Answer(
            request=request,
            actions=actions,
            timesteps=timesteps,
            nfe=nfe,
            rows_per_call=1.0,
            finished_s=self._clock(),
            queue_s=begun_s - request.arrived_s,
            encode_s=encoded_s - begun_s,
            denoise_s=denoised_s - encoded_s,
        )


class NullEngine(_Queue):
    """Answers everybody at once with zeros (MLPerf LoadGen's null system under test).

    What is measured with it is what is left when the model costs nothing: generator, wire, sockets
    and service. It says that it executed one step, since a reply must name one.
    """

    def __init__(
        self, chunk_shape: tuple[int, ...], clock: Callable[[], float], max_waiting: int
    ) -> None:
        """Start with an empty queue.

        Args:
            chunk_shape: (horizon, action_dim) of the answers.
            clock: monotonic, seconds.
            max_waiting: more are refused.
        """
        super().__init__(max_waiting)
        self._actions = np.zeros(chunk_shape, np.float32)
        self._clock = clock

    def advance(self) -> list[Outcome]:
        """Answer everybody who waits."""
        now_s = self._clock()
        waiting = list(self._waiting)
        self._waiting.clear()
        return [self._answer(request, now_s) for request in waiting]

    def fail(self, error: ServerFaultError) -> list[Refusal]:
        """There is nothing that could fail."""
        raise error

    def _answer(self, request: EngineRequest, now_s: float) -> Answer:
        return Answer(
            request=request,
            actions=self._actions,
            timesteps=(0,),
            nfe=0,
            rows_per_call=1.0,
            finished_s=now_s,
            queue_s=now_s - request.arrived_s,
            encode_s=0.0,
            denoise_s=0.0,
        )


def main() -> None:
    """Entry point."""
    config = tyro.cli(
        BaselineConfig,
        prog="python -m benchmarks.baseline_server",
        description="Serve a policy with an engine to compare with.",
    )

    def make_engine(
        backend: Backend,
        planner: Planner,
        _cost: CostModel,
        clock: Callable[[], float],
        _limits: EngineLimits,
    ) -> Scheduler:
        match config.engine:
            case "fifo":
                return FifoEngine(backend, planner, clock, config.default_steps, config.max_waiting)
            case "null":
                return NullEngine(backend.buffers.x_t.shape[1:], clock, config.max_waiting)

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    try:
        serve(config, make_engine)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
