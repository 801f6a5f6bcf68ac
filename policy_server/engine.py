"""The engine: which requests take part in the next network call, and what becomes of every one.

Pure: clock and backend are injected and no socket is known here, so it runs in simulated time. It
works call by call: `advance` makes a network call for whoever is most urgent (several where that
keeps nobody waiting) and returns. In between requests may arrive, expire, be cancelled or
superseded, and the steps still to do are allocated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.errors import (
    CancelledError,
    OverloadedError,
    PolicyError,
    ServerFaultError,
    SupersededError,
)
from models.samplers import draw_noise
from policy_server.admission import Admission
from policy_server.allocation import CallPrice, choose_rows
from policy_server.backends.protocol import Backend
from policy_server.cost_model import CostModel
from policy_server.in_flight import InFlight, Slots
from policy_server.needs import Needs
from policy_server.planner import Planner
from policy_server.requests import Answer, EngineRequest, Outcome, Refusal, RequestKey

SUPERSEDED = "a newer request of this session has arrived"
SHUTTING_DOWN = "the server is shutting down; reconnect and ask again"

_PAUSE_S = 0.001
"""A call that ends so much later than predicted delays all that was promised."""
_TINY_S = 1e-9
_WORTH = 0.25
"""A plan is stretched for at least so much of its length: each change costs some microseconds."""


@dataclass(frozen=True)
class EngineLimits:
    """What bounds the engine.

    Attributes:
        max_call_s: no call of several requests should take longer, so that nobody waits long to be
            looked at; one request's step is made however long it takes.
        max_in_flight: requests inside at one time; more are refused at once.
    """

    max_call_s: float
    max_in_flight: int

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        if not 0 < self.max_call_s < math.inf:
            msg = f"max_call_s: expected more than 0, got {self.max_call_s:g}"
            raise ValueError(msg)
        if self.max_in_flight < 1:
            msg = f"max_in_flight: expected at least 1, got {self.max_in_flight}"
            raise ValueError(msg)


class Engine:
    """Serves many requests at once, one network call after another; see the module's docstring."""

    def __init__(
        self,
        backend: Backend,
        planner: Planner,
        cost: CostModel,
        clock: Callable[[], float],
        limits: EngineLimits,
    ) -> None:
        """Allocate everything.

        Args:
            backend: with buffers for at least `limits.max_in_flight` requests.
            planner: of the checkpoint that the backend evaluates.
            cost: calibrated.
            clock: monotonic, seconds.
            limits: see there.
        """
        self._backend = backend
        self._planner = planner
        self._cost = cost
        self._clock = clock
        self._limits = limits
        steps = planner.steps
        chunk_shape = backend.buffers.x_t.shape[1:]
        self._rows = InFlight(limits.max_in_flight, chunk_shape, steps.max_steps)
        self._needs = Needs(self._rows, cost, steps, limits.max_call_s)
        self._slot_of: dict[RequestKey, int] = {}
        self._admission = Admission(steps, cost, clock, limits.max_in_flight)
        self._calls = 0
        self._call_ended_s: float | None = None
        self._in_call: list[int] = []
        self._suspects: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether `advance` has anything to do."""
        return bool(self._slot_of)

    # ── between two calls ────────────────────────────────────────────────────────────────────────

    def submit(self, request: EngineRequest) -> list[Refusal]:
        """Admit a request, or refuse it at once.

        Returns:
            Refusals: of this request if it cannot be served; of one that has not begun and gives
            way to it: an older one of the same session, or one of a session that has been served
            better of late.
        """
        older = self._admission.waiting_of(request.key[0])
        if older is not None and older.key[1] > request.key[1]:
            return [Refusal(request, SupersededError(SUPERSEDED))]
        decision = self._admission.admit(request, older, len(self._slot_of))
        if decision.error is not None:
            return [Refusal(request, decision.error)]
        refusals = []
        if older is not None:
            self._release(older.key)
            refusals.append(Refusal(older, SupersededError(SUPERSEDED)))
        if decision.displaced is not None:
            self._release(decision.displaced.request.key)
            refusals.append(decision.displaced)
        slot = self._rows.add(request, self._calls, promised=decision.promised)
        self._slot_of[request.key] = slot
        self._admission.entered(request)
        return refusals

    def cancel(self, key: RequestKey) -> list[Refusal]:
        """Give up a request that nobody waits for any more; unknown ones are none."""
        if key not in self._slot_of:
            return []
        return [self._refuse(key, CancelledError("cancelled by the client"))]

    def drain(self) -> list[Refusal]:
        """Refuse what has not begun; the rest may be finished."""
        rows = self._rows
        waiting = rows.requests(np.flatnonzero(rows.used & ~rows.begun))
        return [self._refuse(r.key, OverloadedError(SHUTTING_DOWN)) for r in waiting]

    def fail(self, error: ServerFaultError) -> list[Refusal]:
        """After `advance` has raised: the requests of that call are tried again, one by one.

        Returns:
            The request to blame, when it has failed alone; all others are served as if nothing
            was. All that are inside, if it was not in a call.
        """
        in_call, self._in_call = self._in_call, []
        self._call_ended_s = None
        if len(in_call) > 1:
            self._suspects.update(in_call)
            return []
        blamed = np.array(in_call, np.intp) if in_call else self._rows.slots()
        return [self._refuse(request.key, error) for request in self._rows.requests(blamed)]

    def _release(self, key: RequestKey) -> None:
        slot = self._slot_of.pop(key)
        self._suspects.discard(slot)
        request = self._rows.request[slot]
        assert request is not None
        self._admission.gone(request, promised=bool(self._rows.promised[slot]))
        self._rows.remove(slot)
        if not self._slot_of:
            self._call_ended_s = None  # idle from here on

    def _refuse(self, key: RequestKey, error: PolicyError) -> Refusal:
        request = self._rows.request[self._slot_of[key]]
        assert request is not None
        self._release(key)
        return Refusal(request, error)

    # ── one call ─────────────────────────────────────────────────────────────────────────────────

    def advance(self) -> list[Outcome]:
        """Make network calls for whoever is most urgent, and return what came to an end.

        It is one call; where everybody inside takes part several, within `max_call_s`.
        """
        now_s, price = self._clock(), self._needs.price()
        outcomes = self._refuse_expired(now_s, price)
        if outcomes or not self._slot_of:  # told before a call that might fail
            return outcomes
        chosen = self._choose(now_s, price)
        self._in_call = chosen.tolist()
        self._begin(chosen, now_s)
        self._step(chosen, now_s + self._limits.max_call_s)
        outcomes += self._finish(chosen)
        self._suspects.difference_update(self._in_call)
        self._in_call = []
        return outcomes

    def _refuse_expired(self, now_s: float, price: CallPrice) -> list[Outcome]:
        """Refuse what has not begun and could not be in time any more if it began now."""
        rows = self._rows
        waiting = rows.expires.nonzero()[0]
        if not len(waiting):
            return []
        fewest, network_rows = self._planner.steps.min_steps, rows.network_rows[waiting]
        if len(self._slot_of) == 1:  # as in `Admission`: whoever is alone may try
            finish_s = now_s + np.array([self._cost.calm_s(fewest, int(network_rows[0]))])
            return self._refuse_late(waiting, finish_s)
        needed_s = fewest * price.step_s(network_rows)
        finish_s = now_s + self._cost.encode.estimate_s + needed_s + self._cost.finish.estimate_s
        return self._refuse_late(waiting, finish_s)

    def _refuse_late(self, waiting: Slots, finish_s: npt.NDArray[np.float64]) -> list[Outcome]:
        rows = self._rows
        expired = np.flatnonzero(finish_s > rows.deadline_s[waiting])
        outcomes: list[Outcome] = []
        for i in expired.tolist():
            (request,) = rows.requests(waiting[i : i + 1])
            error = self._admission.deadline_error(request, float(finish_s[i]))
            self._admission.refused(request.key[0])
            outcomes.append(self._refuse(request.key, error))
        return outcomes

    def _choose(self, now_s: float, price: CallPrice) -> Slots:
        """Allocate steps to all, and pick those that take part in the next call."""
        rows = self._rows
        slots = rows.slots()
        slots = slots[rows.deadline_s[slots].argsort(kind="stable")]
        demand = self._needs.demand(slots, now_s, price, self._calls)
        self._admission.rebuild(now_s, rows.deadline_s[slots], demand, price)
        given = self._needs.given_steps(slots, demand, price)
        if self._suspects:
            chosen = np.flatnonzero(slots == min(self._suspects))
        else:
            chosen = choose_rows(demand, given, price)
        # encoding, too, must not keep others waiting
        fresh = (~rows.begun[slots[chosen]]).cumsum()
        encode_s = max(self._cost.encode.typical_s, 1e-9)
        if fresh[-1] > (most := max(1, self._limits.max_call_s // encode_s)):
            chosen = chosen[(fresh <= most) | rows.begun[slots[chosen]]]
        self._plan_again(slots[chosen], given[chosen])
        return slots[chosen]

    def _plan_again(self, slots: Slots, given: npt.NDArray[np.int64]) -> None:
        """Fit the plans of those that take part to the steps that they are given."""
        rows = self._rows
        left = rows.steps_left[slots]
        if (left == given).all():
            return
        stretch = given >= left + np.maximum(1, _WORTH * left)
        (changed,) = (rows.begun[slots] & (left > 0) & ((given < left) | stretch)).nonzero()
        for slot, count in zip(slots[changed].tolist(), given[changed].tolist(), strict=True):
            request = rows.request[slot]
            assert request is not None
            executed = rows.executed_timesteps(slot)
            before = executed[-1] if executed else None
            start = rows.next_timestep(slot)
            rows.set_plan(slot, self._planner.plan(count, start, request.eta, before))
        waiting = ~rows.begun[slots]
        rows.steps_left[slots[waiting]] = given[waiting]

    def _begin(self, chosen: Slots, now_s: float) -> None:
        """Encode the conditions of those that take part for the first time, and plan them."""
        rows = self._rows
        fresh = chosen[~rows.begun[chosen]]
        if not len(fresh):
            return
        slots, requests = fresh.tolist(), rows.requests(fresh)
        self._backend.encode(
            slots, [r.observation for r in requests], [r.instruction for r in requests]
        )
        encoded_s = self._clock()
        last, shape = self._planner.steps.max_steps, rows.x_t.shape[1:]
        for slot, request in zip(slots, requests, strict=True):
            plan = self._planner.plan(int(rows.steps_left[slot]), last - 1, request.eta)
            noise = draw_noise(request.seed, last, shape)
            rows.begin(slot, plan, noise, begun_s=now_s, encoded_s=encoded_s)
            self._admission.begun(request.key)
        self._cost.encode.observe((encoded_s - now_s) / len(slots))

    def _step(self, chosen: Slots, until_s: float) -> None:
        """One denoising step of each, in one network call.

        When nobody else is inside, more of them while the next one ends before `until_s`: nobody
        who arrives meanwhile waits for longer.
        """
        rows, buffers = self._rows, self._backend.buffers
        if self._suspects:  # one that failed after its last step has none to repeat
            chosen = chosen[rows.steps_left[chosen] > 0]
            if not len(chosen):
                return
        most_rows = int(rows.network_rows[chosen].sum())
        step_s = self._cost.per_call_s + self._cost.per_row_s * most_rows
        most = 1
        if len(chosen) == len(self._slot_of):
            fit = int(self._limits.max_call_s / max(step_s, _TINY_S))
            most = min(fit, int(rows.steps_left[chosen].min()))
        done = 0
        for network_rows in rows.load(chosen, max(1, most), buffers):
            if done:
                buffers.go_on(len(chosen))
            begun_s = self._clock()
            self._backend.step(len(chosen), network_rows)
            ended_s = self._clock()
            self._account(network_rows, begun_s, ended_s)
            done += 1
            if ended_s + step_s > until_s:
                break
        self._calls += done
        rows.store(chosen, buffers, done, self._calls)

    def _account(self, network_rows: int, begun_s: float, ended_s: float) -> None:
        """Learn from a call what calls cost."""
        # from the end of the call before: what lies between two calls is part of their price, but
        # what comes before the first one after idleness is not what comes before each
        since_s = begun_s if self._call_ended_s is None else self._call_ended_s
        pause_s = self._cost.observe_call(network_rows, ended_s - begun_s, ended_s - since_s)
        if pause_s > _PAUSE_S:
            self._admission.delayed(pause_s)
        self._call_ended_s = ended_s

    def _finish(self, chosen: Slots) -> list[Outcome]:
        """Answer those whose last step this was."""
        rows = self._rows
        done = chosen[rows.steps_left[chosen] == 0]
        if not len(done):
            return []
        denoised_s = self._clock()
        x_t = rows.x_t[done]
        finite = np.isfinite(x_t).all(axis=(1, 2)).tolist()
        actions = self._backend.to_actions(x_t)
        finished_s = self._clock()
        self._cost.finish.observe(finished_s - denoised_s)
        outcomes: list[Outcome] = []
        for i, (slot, request) in enumerate(zip(done.tolist(), rows.requests(done), strict=True)):
            if finite[i]:
                outcomes.append(self._answer(slot, request, actions[i], denoised_s, finished_s))
                self._admission.answered(request.key[0])
            else:
                error = ServerFaultError("the model produced a non-finite action; nothing was sent")
                outcomes.append(Refusal(request, error))
                self._admission.refused(request.key[0])
            self._release(request.key)
        return outcomes

    def _answer(
        self,
        slot: int,
        request: EngineRequest,
        actions: npt.NDArray[np.float32],
        denoised_s: float,
        finished_s: float,
    ) -> Answer:
        rows = self._rows
        timesteps = rows.executed_timesteps(slot)
        begun_s, encoded_s = float(rows.begun_s[slot]), float(rows.encoded_s[slot])
        return Answer(
            request=request,
            actions=actions,
            timesteps=timesteps,
            nfe=rows.executed_rows(slot),
            rows_per_call=float(rows.shared[slot]) / len(timesteps),
            finished_s=finished_s,
            queue_s=begun_s - request.arrived_s,
            encode_s=encoded_s - begun_s,
            denoise_s=denoised_s - encoded_s,
        )
