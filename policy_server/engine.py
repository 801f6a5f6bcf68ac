"""The engine: which request gets the next network call, and what becomes of every request.

Pure: clock and backend are injected and no socket is known here, so it runs in simulated time. It
works call by call: `advance` does one piece of work (an encoding or one denoising step) and
returns, and between two calls requests may arrive, expire or be superseded, and the steps still to
do are planned again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from client.errors import (
    DeadlineError,
    OverloadedError,
    PolicyError,
    ServerFaultError,
    SupersededError,
)
from models.guidance import network_rows
from models.samplers import draw_noise
from policy_server.backends.protocol import Backend
from policy_server.cost_model import CostModel
from policy_server.planner import Plan, Planner

SUPERSEDED = "a newer request of this session has arrived"
SHUTTING_DOWN = "the server is shutting down; reconnect and ask again"

RequestKey = tuple[str, int]
"""(session_id, request_id)."""


@dataclass(frozen=True, eq=False)
class EngineRequest:
    """A valid request with everything resolved that a client may leave open.

    Attributes:
        key: who asked what.
        observation: name → array, validated.
        instruction: float32 [INSTRUCTION_DIM], its embedding.
        arrived_s: when it was read from the socket, engine clock.
        deadline_s: when its answer is due, engine clock.
        num_steps: exactly so many; None leaves it to the planner.
        guidance_scale: w.
        eta: 0 deterministic .. 1 ancestral.
        seed: of its noise.
        best_effort: answer late rather than refuse.
    """

    key: RequestKey
    observation: Mapping[str, npt.NDArray[Any]]
    instruction: npt.NDArray[np.float32]
    arrived_s: float
    deadline_s: float
    num_steps: int | None
    guidance_scale: float
    eta: float
    seed: int
    best_effort: bool

    @property
    def network_rows(self) -> int:
        """Network rows of one of its steps."""
        return network_rows(self.guidance_scale)


@dataclass(frozen=True)
class Answer:
    """A finished request. Durations in seconds; `timesteps` are those that were executed."""

    request: EngineRequest
    actions: npt.NDArray[np.float32]
    timesteps: tuple[int, ...]
    nfe: int
    finished_s: float
    queue_s: float
    encode_s: float
    denoise_s: float

    @property
    def deadline_met(self) -> bool:
        """Whether the server was done in time; the client judges for itself on its own clock."""
        return self.finished_s <= self.request.deadline_s


@dataclass(frozen=True)
class Refusal:
    """A request that gets no actions, and why."""

    request: EngineRequest
    error: PolicyError


Outcome = Answer | Refusal


def _is_patient(request: EngineRequest) -> bool:
    """Whether it is answered however late: a fixed step count, or best effort."""
    return request.num_steps is not None or request.best_effort


@dataclass
class _InService:
    """The request whose steps are being executed."""

    request: EngineRequest
    plan: Plan
    started_s: float
    encoded_s: float
    stepped_s: float
    position: int = 0
    executed: list[int] = field(default_factory=list)

    @property
    def steps_left(self) -> int:
        return len(self.plan.timesteps) - self.position


class Engine:
    """Serves one request at a time, earliest deadline first, one network call at a time."""

    def __init__(
        self,
        backend: Backend,
        planner: Planner,
        cost: CostModel,
        clock: Callable[[], float],
        max_waiting: int,
    ) -> None:
        self._backend = backend
        self._planner = planner
        self._cost = cost
        self._clock = clock
        self._max_waiting = max_waiting
        self._waiting: list[EngineRequest] = []
        self._taken: EngineRequest | None = None
        self._in_service: _InService | None = None

    @property
    def busy(self) -> bool:
        """Whether `advance` has anything to do."""
        return self._in_service is not None or bool(self._waiting)

    def submit(self, request: EngineRequest) -> list[Refusal]:
        """Admit a request, or refuse it at once.

        Returns:
            Refusals: of this request if it cannot be served; of an older waiting request of the
            same session, which this one supersedes if it is admitted; and of requests whose time
            has run out meanwhile.
        """
        refused = self._refuse_expired()
        session, request_id = request.key
        if any(w.key[0] == session and w.key[1] > request_id for w in self._waiting):
            return [*refused, Refusal(request, SupersededError(SUPERSEDED))]
        older = [waiting for waiting in self._waiting if waiting.key[0] == session]
        others = [waiting for waiting in self._waiting if waiting.key[0] != session]
        error = self._reason_to_refuse(request, others)
        if error is not None:
            return [*refused, Refusal(request, error)]
        self._waiting = sorted([*others, request], key=lambda waiting: waiting.deadline_s)
        return [*refused, *(Refusal(old, SupersededError(SUPERSEDED)) for old in older)]

    def _reason_to_refuse(
        self, request: EngineRequest, others: list[EngineRequest]
    ) -> PolicyError | None:
        if len(others) >= self._max_waiting:
            return OverloadedError(
                f"queue: {self._max_waiting} requests are waiting already; send fewer or slower"
            )
        if _is_patient(request):
            return None
        ahead_s = self._time_ahead_s(request, others)
        finish_s = self._clock() + ahead_s + self._fewest_steps_s(request)
        return None if finish_s <= request.deadline_s else self._deadline_error(request, finish_s)

    def _refuse_expired(self) -> list[Refusal]:
        """Refuse what waits and could not even have `min_steps` any more if it were next."""
        now_s = self._clock()
        refusals = []
        for waiting in [w for w in self._waiting if not _is_patient(w)]:
            finish_s = now_s + self._fewest_steps_s(waiting)
            if finish_s > waiting.deadline_s:
                self._waiting.remove(waiting)
                refusals.append(Refusal(waiting, self._deadline_error(waiting, finish_s)))
        return refusals

    def _fewest_steps_s(self, request: EngineRequest) -> float:
        return self._planner.service_s(
            request.num_steps or self._planner.steps.min_steps, request.network_rows
        )

    def _time_ahead_s(self, request: EngineRequest, others: list[EngineRequest]) -> float:
        """Least time that the request in service and earlier deadlines will take.

        `_time_for` keeps this promise: whoever is in service leaves that much to those waiting.
        """
        ahead_s = sum(
            self._fewest_steps_s(waiting)
            for waiting in others
            if waiting.deadline_s <= request.deadline_s
        )
        current = self._in_service
        if current is not None:
            steps = current.steps_left
            if current.request.num_steps is None:
                steps = max(self._planner.steps.min_steps - len(current.executed), 1)
            ahead_s += self._planner.remaining_s(steps, current.request.network_rows)
        return ahead_s

    def _time_for(self, request: EngineRequest, now_s: float) -> float:
        """How long the request in service may take: to its deadline, less what others must have.

        Everybody who waits was promised `min_steps` in time, so the request in service is planned
        to end early enough that they can have them, in the order of their deadlines.
        """
        until_s = request.deadline_s
        needed_s = 0.0
        for waiting in self._waiting:
            needed_s += self._fewest_steps_s(waiting)
            if not _is_patient(waiting):
                until_s = min(until_s, waiting.deadline_s - needed_s)
        return until_s - now_s

    def _deadline_error(self, request: EngineRequest, finish_s: float) -> DeadlineError:
        steps = self._planner.steps.min_steps
        soonest_s = finish_s - request.arrived_s
        budget_s = request.deadline_s - request.arrived_s
        return DeadlineError(
            f"cannot meet deadline: {steps} steps would be done {soonest_s * 1e3:.1f} ms after "
            f"arrival, the budget is {budget_s * 1e3:.1f} ms; allow more or set best_effort",
            soonest_s=soonest_s,
        )

    def advance(self) -> list[Outcome]:
        """Do one piece of work and return what it brought to an end."""
        refused = self._refuse_expired()
        if refused:
            return [*refused]
        if self._in_service is None:
            self._begin()
            return []
        return self._step(self._in_service)

    def fail(self, error: ServerFaultError) -> list[Refusal]:
        """Give up the request that `advance` raised on; all others are served as if nothing was."""
        taken, self._taken, self._in_service = self._taken, None, None
        return [] if taken is None else [Refusal(taken, error)]

    def drain(self) -> list[Refusal]:
        """Refuse what waits; what is in service may be finished."""
        waiting, self._waiting = self._waiting, []
        return [Refusal(request, OverloadedError(SHUTTING_DOWN)) for request in waiting]

    def _begin(self) -> None:
        """Take the most urgent waiting request into service and encode its condition."""
        if not self._waiting:
            return
        request = self._taken = self._waiting.pop(0)
        started_s = self._clock()
        buffers = self._backend.buffers
        self._backend.encode(0, request.observation, request.instruction)
        buffers.lay_out(np.array([request.guidance_scale], np.float32), np.array([0]))
        last = self._planner.steps.max_steps
        buffers.x_t[0] = draw_noise(request.seed, last, buffers.x_t[0].shape)
        buffers.x0_prev[0] = 0
        encoded_s = self._clock()
        self._cost.encode.observe(encoded_s - started_s)
        steps = request.num_steps
        if steps is None:
            time_s = self._time_for(request, encoded_s)
            steps = self._planner.elastic_steps(time_s, request.network_rows, executed=0)
        plan = self._planner.plan(steps, last - 1, request.eta)
        self._in_service = _InService(request, plan, started_s, encoded_s, encoded_s)

    def _step(self, current: _InService) -> list[Outcome]:
        """One denoising step of the request in service; answers it after its last one."""
        request, buffers = current.request, self._backend.buffers
        if request.num_steps is None:
            self._plan_again(current, self._time_for(request, self._clock()))
        timestep = int(current.plan.timesteps[current.position])
        coefficients = current.plan.coefficients[current.position]
        buffers.timesteps[0] = timestep
        buffers.coefficients[0] = coefficients
        if coefficients[3] != 0:
            buffers.noise[0] = draw_noise(request.seed, timestep, buffers.noise[0].shape)
        self._backend.step(1, request.network_rows)
        buffers.x_t[0] = buffers.x_prev[0]
        buffers.x0_prev[0] = buffers.x0[0]
        current.executed.append(timestep)
        current.position += 1
        now_s = self._clock()
        # from the end of the call before: what lies between two calls is part of a step's price
        self._cost.call(request.network_rows).observe(now_s - current.stepped_s)
        current.stepped_s = now_s
        if current.steps_left:
            return []
        outcome = self._finish(current)
        self._taken = self._in_service = None
        return [outcome]

    def _plan_again(self, current: _InService, time_s: float) -> None:
        """Stretch or shorten what is left of an elastic request to the time that is left."""
        steps = self._planner.elastic_steps(
            time_s, current.request.network_rows, len(current.executed)
        )
        start = int(current.plan.timesteps[current.position])
        if min(steps, start + 1) != current.steps_left:
            before = current.executed[-1] if current.executed else None
            current.plan = self._planner.plan(steps, start, current.request.eta, before)
            current.position = 0

    def _finish(self, current: _InService) -> Outcome:
        request = current.request
        denoised_s = self._clock()
        x_t = self._backend.buffers.x_t[0]
        if not np.isfinite(x_t).all():
            error = ServerFaultError("the model produced a non-finite action; nothing was sent")
            return Refusal(request, error)
        actions = self._backend.to_actions(x_t)
        finished_s = self._clock()
        self._cost.finish.observe(finished_s - denoised_s)
        return Answer(
            request=request,
            actions=actions,
            timesteps=tuple(current.executed),
            nfe=len(current.executed) * request.network_rows,
            finished_s=finished_s,
            queue_s=current.started_s - request.arrived_s,
            encode_s=current.encoded_s - current.started_s,
            denoise_s=denoised_s - current.encoded_s,
        )
