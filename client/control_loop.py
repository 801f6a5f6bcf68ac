"""Drives a robot with a policy: one tick observes, asks when it is time, and commands one action.

              |<------------------------- horizon ------------------------->|
    actions   a0    a1    a2    ...   a[exec_steps]   ...            a[horizon-1]
    executed              |<--- from the arrival of the answer until the next one --->|
              ^t_obs = a request is due          ^the next one, exec_steps ticks later

Actions are taken by time, never by count: an answer that comes 3 ticks after its observation starts
with a3. Each is checked against the limits that the robot declares; where a chunk breaks them, the
one before goes on. If nothing is due, the robot does its `safe_action`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from client.action_buffer import ActionBuffer
from client.errors import (
    CannotServeError,
    ConnectionLostError,
    InvalidRequestError,
    PolicyError,
    ServerFaultError,
    SupersededError,
    UnsafeActionError,
)
from client.history import ObservationHistory
from client.loop_stats import LoopStats, Outcome, RequestRecord
from client.outstanding import Chunk
from client.robot import Robot
from client.specs import PolicySpec
from client.ticker import Tick, Ticker

_log = logging.getLogger(__name__)

_SLEEP_S = 0.002  # the last of a wait; polling a socket is exact to a millisecond only
_DRAIN_SLACK_S = 0.05


class Policy(Protocol):
    """What the loop needs of a `PolicyClient`."""

    def submit(
        self,
        observation: Mapping[str, npt.NDArray[Any]],
        instruction: str,
        *,
        budget_s: float,
        num_steps: int | None,
        guidance_scale: float | None,
        eta: float | None,
        seed: int | None,
        best_effort: bool,
        due_s: float,
        timeout_s: float,
    ) -> int:
        """Ask without waiting; the request_id."""
        ...

    def poll(self, timeout_s: float) -> Sequence[Chunk | PolicyError]:
        """Wait for answers, at most so long; may return up to a millisecond early without any."""
        ...


@dataclass(frozen=True)
class _Asked:
    """A request of the loop; instants on the client's clock."""

    record: RequestRecord
    episode: int
    t_obs_s: float
    observed_s: float


class ControlLoop:
    """Executes what a policy answers, by time, on one robot.

    Requests are due at every exec_steps-th tick of an episode, the first at its first tick, and
    latency counts from then, even if the loop itself is late to ask. t_obs is the time the tick was
    scheduled for (at most half a control period from when it was observed): so action i belongs to
    exactly the tick i after it.

    Example:
        >>> with PolicyClient(address) as policy:  # doctest: +SKIP
        ...     spec = policy.metadata().spec
        ...     loop = ControlLoop(robot, policy, spec, instruction="open it", budget_s=0.08)
        ...     print(loop.run(duration_s=10).miss_rate)

    Attributes:
        instruction: plain words, or a function that gives them; may be assigned at any time and
            counts from the next request on.
        stats: counted since the loop was made.
    """

    def __init__(
        self,
        robot: Robot,
        policy: Policy,
        spec: PolicySpec,
        *,
        instruction: str | Callable[[], str],
        budget_s: float,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        seed: int | None = None,
        best_effort: bool = False,
        timeout_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Ask and command nothing yet; the first `step` does.

        Args:
            robot: observed and commanded once a tick; its limits are read now.
            policy: usually a `PolicyClient`.
            spec: of the policy, from its metadata.
            instruction: see the attribute.
            budget_s: time from when a request is due within which its answer is useful.
            num_steps: of every request; see `PolicyClient.submit`, as for the next four.
            guidance_scale: of every request.
            eta: of every request.
            seed: of every request.
            best_effort: of every request.
            timeout_s: after which a request counts as lost.
            clock: the policy's clock, monotonic, in seconds.
            sleep: waits for so many seconds of that clock.

        Raises:
            ValueError: robot and policy differ in the number of action dimensions.
        """
        if robot.limits.action_dim != spec.action_dim:
            msg = (
                f"robot.limits: expected {spec.action_dim} dimensions, as the policy has "
                f"{spec.action_names}, got {robot.limits.action_dim}; is it one for this robot?"
            )
            raise ValueError(msg)
        self.instruction = instruction
        self.stats = LoopStats()
        self._robot = robot
        self._policy = policy
        self._spec = spec
        self._budget_s = budget_s
        self._num_steps = num_steps
        self._guidance_scale = guidance_scale
        self._eta = eta
        self._seed = seed
        self._best_effort = best_effort
        self._timeout_s = timeout_s
        self._clock = clock
        self._sleep = sleep
        self._ticker = Ticker(spec.control_period_s, clock=clock, sleep=self._receive_for)
        self._history = ObservationHistory(spec)
        self._buffer = ActionBuffer(
            robot.limits, horizon=spec.horizon, control_period_s=spec.control_period_s
        )
        self._asked: dict[int, _Asked] = {}
        self._last_outcome: Outcome = "on_time"
        self._model_id: str | None = None
        self._episode = 0
        self.begin_episode()

    def begin_episode(self) -> None:
        """Start anew: no history, no actions, and answers to older requests are not executed.

        The next `step` is the first tick, at once; time spent before it counts nowhere.
        """
        self._episode += 1
        self._history.clear()
        self._buffer.clear()
        self._ticker.restart()
        self._next_request = 0
        self._newest: _Asked | None = None
        self._commanded: npt.NDArray[Any] | None = None

    def run(self, *, duration_s: float) -> LoopStats:
        """One episode of `duration_s`; whatever ends it, the robot is left in its safe action."""
        ticks = round(duration_s / self._spec.control_period_s)
        self.begin_episode()
        try:
            while self.step().index < ticks - 1:
                pass
        finally:
            self._robot.apply(self._robot.safe_action())
        return self.drain()

    def step(self) -> Tick:
        """Wait for the next control tick and do it.

        Raises:
            InvalidRequestError: what the robot observes does not fit the policy's specification.
        """
        tick = self._ticker.wait()
        observed_s = self._clock()
        self._history.add(tick.index, self._robot.observe())
        self._ask_if_due(tick, observed_s)
        self._receive(0.0)
        self._robot.apply(self._action(tick))
        self.stats.control_ticks += 1
        self.stats.overruns = self._ticker.overruns
        self.stats.skipped = self._ticker.skipped
        self.stats.discarded = self._buffer.discarded
        self.stats.rejected = self._buffer.rejected
        return tick

    def drain(self) -> LoopStats:
        """Wait until every request has its outcome, at most timeout_s; commands nothing."""
        give_up_s = self._clock() + self._timeout_s + _DRAIN_SLACK_S
        while self._asked and (left_s := give_up_s - self._clock()) > 0:
            self._receive(left_s)
        for asked in self._asked.values():
            self._settle(asked.record, "lost")
        self._asked.clear()
        return self.stats

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    def _ask_if_due(self, tick: Tick, observed_s: float) -> None:
        period_s = self._spec.control_period_s
        exec_steps = self._spec.exec_steps
        while self._next_request <= tick.index:
            record = RequestRecord(due_s=tick.time_s - (tick.index - self._next_request) * period_s)
            self._next_request += exec_steps
            if self._next_request <= tick.index:  # the loop was held up for a whole request period
                self._settle(record, "lost")
            else:
                self._ask(record, tick.time_s, observed_s)

    def _ask(self, record: RequestRecord, t_obs_s: float, observed_s: float) -> None:
        words = self.instruction() if callable(self.instruction) else self.instruction
        try:
            request_id = self._policy.submit(
                self._history.stacked(),
                words,
                budget_s=self._budget_s,
                num_steps=self._num_steps,
                guidance_scale=self._guidance_scale,
                eta=self._eta,
                seed=self._seed,
                best_effort=self._best_effort,
                due_s=record.due_s,
                timeout_s=self._timeout_s,
            )
        except PolicyError as error:
            self._settle_error(record, error, self._episode)
            return
        record.request_id = request_id
        self._asked[request_id] = _Asked(record, self._episode, t_obs_s, observed_s)

    # ── answers ──────────────────────────────────────────────────────────────────────────────────

    def _receive_for(self, duration_s: float) -> None:
        """The ticker's sleep: answers are taken as they arrive, but for its last `_SLEEP_S`."""
        until_s = self._clock() + duration_s
        while (left_s := until_s - self._clock()) > _SLEEP_S:
            self._receive(left_s - _SLEEP_S / 2)
        if left_s > 0:
            self._sleep(left_s)

    def _receive(self, timeout_s: float) -> None:
        for result in self._policy.poll(timeout_s):
            asked = None if result.request_id is None else self._asked.pop(result.request_id, None)
            if asked is None:
                self.stats.unmatched += 1
                _log.warning("ignored, since it answers no request of this loop: %s", result)
            elif isinstance(result, PolicyError):
                self._settle_error(asked.record, result, asked.episode)
            else:
                self._take(asked, result)

    def _take(self, asked: _Asked, chunk: Chunk) -> None:
        record = asked.record
        if chunk.spec_id != self._spec.spec_id:  # the client may know of another policy by now
            msg = (
                f"reply: expected actions of this loop's specification ({self._spec.spec_id}), got "
                f"some of {chunk.model_id}'s ({chunk.spec_id}); make a loop for that policy"
            )
            error = ServerFaultError(msg, request_id=chunk.request_id)
            self._settle_error(record, error, asked.episode)
            return
        if asked.episode == self._episode:
            try:
                taken = self._buffer.add(chunk.actions, asked.t_obs_s)
            except UnsafeActionError as error:
                self._settle_error(record, error, asked.episode)
                return
            if taken:
                self._newest = asked
        record.latency_s = chunk.latency_s
        record.num_steps = chunk.num_steps
        record.nfe = chunk.nfe
        record.model_id = chunk.model_id
        if chunk.model_id != self._model_id and self._model_id is not None:
            _log.warning(
                "answers are of model %s now, no more of %s", chunk.model_id, self._model_id
            )
        self._model_id = chunk.model_id
        self._settle(record, "late" if chunk.late else "on_time")

    def _settle_error(self, record: RequestRecord, error: PolicyError, episode: int) -> None:
        record.error = str(error)
        outcome: Outcome
        match error:
            case SupersededError() if episode != self._episode and not self._is_over(record):
                outcome = "abandoned"
            case CannotServeError() | InvalidRequestError():
                outcome = "refused"
            case ConnectionLostError():
                outcome = "lost"
            case _:
                outcome = "fault"
        self._settle(record, outcome)

    def _is_over(self, record: RequestRecord) -> bool:
        return self._clock() > record.due_s + self._budget_s

    def _settle(self, record: RequestRecord, outcome: Outcome) -> None:
        self.stats.settle(record, outcome)
        if outcome != self._last_outcome:  # not each of ten a second
            level = logging.INFO if outcome == "on_time" else logging.WARNING
            _log.log(level, "requests are now %s: %s", outcome, record.error or record)
        self._last_outcome = outcome

    # ── actions ──────────────────────────────────────────────────────────────────────────────────

    def _action(self, tick: Tick) -> npt.NDArray[Any]:
        """What to command now: the action that is due and within limits, else the safe one."""
        if self._commanded is None:
            self._commanded = np.array(self._robot.safe_action())
        now_s = self._clock()
        held_up = now_s - tick.time_s > self._spec.control_period_s  # e.g. by a slow sensor
        due = self._buffer.action_at(now_s if held_up else tick.time_s, self._commanded)
        if due is None:
            within_budget = tick.index * self._spec.control_period_s < self._budget_s
            if self._newest is None and within_budget:
                self.stats.waiting += 1
            else:
                self.stats.starved += 1
            self._commanded = np.array(self._robot.safe_action())
            return self._commanded
        self._commanded, t_obs_s = due
        if self._newest is not None and self._newest.t_obs_s == t_obs_s:
            record = self._newest.record
            if record.staleness_s is None:
                record.staleness_s = now_s - self._newest.observed_s
        return self._commanded
