"""Warm-up: what network calls of every size take, measured before the first request is served."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from client.specs import PolicySpec
from models.instruction_encoder import INSTRUCTION_DIM
from policy_server.backends.protocol import Backend
from policy_server.cost_model import CostModel
from policy_server.requests import EngineRequest, Outcome, Scheduler

_USUAL_CALL_S = 0.003
_SHARED_CALL = 4
_REPEATS = 20
_SIZES = 10
_WARM_UP_STEPS = 10
_WARM_UP_ROUNDS = 8
_WARM_UP_BUDGET_S = 600.0


def zero_observation(spec: PolicySpec) -> dict[str, npt.NDArray[Any]]:
    """A valid observation."""
    return {name: np.zeros(array.shape, array.dtype) for name, array in spec.observation.items()}


def measure_calls(
    backend: Backend, clock: Callable[[], float], sizes: int
) -> Iterator[tuple[int, float]]:
    """(network rows, median seconds) of guided calls of 1, 2, 4, … requests.

    Args:
        backend: any state of its buffers is overwritten.
        clock: monotonic, seconds.
        sizes: at most so many different ones; fewer if the buffers hold no more.
    """
    for requests in (2**i for i in range(sizes)):
        if requests > backend.buffers.max_requests:
            return
        w = np.ones(requests, np.float32)
        network_rows = backend.buffers.lay_out(w, np.arange(requests))
        durations = []
        for _ in range(_REPEATS):
            begun_s = clock()
            backend.step(requests, network_rows)
            durations.append(clock() - begun_s)
        yield network_rows, statistics.median(durations[1:])


def usual_max_call_s(backend: Backend, clock: Callable[[], float]) -> float:
    """How long a call of several requests may take: `_USUAL_CALL_S`, or `_SHARED_CALL` of one.

    Whoever comes waits for the call that is being made, and of a large network even that of one
    request takes long. Two of those hold too few requests to share much; beyond four, little more
    is gained.
    """
    _, alone_s = next(measure_calls(backend, clock, 1))
    return max(_USUAL_CALL_S, _SHARED_CALL * alone_s)


def measure_cost(
    backend: Backend,
    observation: Mapping[str, npt.NDArray[Any]],
    clock: Callable[[], float],
    max_call_s: float,
) -> CostModel:
    """Time calls up to the first that takes longer than `max_call_s`: larger ones are not made."""
    rows: list[int] = []
    seconds: list[float] = []
    for network_rows, call_s in measure_calls(backend, clock, _SIZES):
        rows.append(network_rows)
        seconds.append(call_s)
        if len(rows) > 1 and call_s > max_call_s:
            break
    cost = CostModel(rows, seconds)
    instruction = np.zeros(INSTRUCTION_DIM, np.float32)
    for _ in range(_REPEATS):
        begun_s = clock()
        backend.encode([0], [observation], [instruction])
        encoded_s = clock()
        backend.to_actions(backend.buffers.x_t[:1])
        cost.encode.observe(encoded_s - begun_s)
        cost.finish.observe(clock() - encoded_s)
    return cost


def warm_up(
    engine: Scheduler,
    observation: Mapping[str, npt.NDArray[Any]],
    clock: Callable[[], float],
    *,
    max_in_flight: int,
    eta: float,
) -> list[Outcome]:
    """Run requests through every code path, more at a time each round.

    Args:
        engine: with nothing inside.
        observation: any valid one.
        clock: the engine's.
        max_in_flight: requests inside at one time.
        eta: of every second request; 0 where the sampler takes no other.

    Returns:
        What became of them.
    """
    outcomes: list[Outcome] = []
    for number in range(_WARM_UP_ROUNDS):
        for robot in range(min(number + 1, max_in_flight)):
            request = EngineRequest(
                key=(f"warm-up {robot}", number),
                observation=observation,
                instruction=np.zeros(INSTRUCTION_DIM, np.float32),
                arrived_s=clock(),
                deadline_s=clock() + _WARM_UP_BUDGET_S,
                num_steps=_WARM_UP_STEPS,
                guidance_scale=float(robot % 2),
                eta=eta * (number % 2),
                seed=number,
                best_effort=True,
            )
            outcomes += engine.submit(request)
        while engine.busy:
            outcomes += engine.advance()
    return outcomes
