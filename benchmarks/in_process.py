"""The engine over one backend in this process: what a server does, less sockets and service."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.checkpoint import SamplingDefaults
from models.policy import DiffusionPolicy
from policy_server.backends.protocol import Backend
from policy_server.calibration import measure_cost, usual_max_call_s, zero_observation
from policy_server.engine import Engine, EngineLimits
from policy_server.planner import Planner, StepRange
from policy_server.requests import Answer, EngineRequest, Outcome

_PATIENCE_S = 600.0


class InProcess:
    """Answers requests with as many steps as they ask for, however long that takes.

    Args:
        policy: that the backend evaluates.
        backend: with room for all requests that are asked together.
        defaults: sampler, grid and where guidance acts.
        max_call_s: see `EngineLimits`; that of a server which is not told otherwise, if None.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        backend: Backend,
        defaults: SamplingDefaults,
        max_call_s: float | None = None,
    ) -> None:
        self.backend = backend
        steps, clock = policy.diffusion.num_timesteps, time.monotonic
        planner = Planner(
            StepRange(1, steps, steps),
            policy.diffusion.alpha_bar,
            defaults.grid,
            defaults.sampler,
            defaults.guidance_interval,
        )
        if max_call_s is None:
            max_call_s = usual_max_call_s(backend, clock)
        cost = measure_cost(backend, zero_observation(policy.spec), clock, max_call_s)
        limits = EngineLimits(max_call_s, backend.buffers.max_requests)
        self._engine = Engine(backend, planner, cost, clock, limits)
        self._number = 0

    def requests(
        self,
        observations: Sequence[Mapping[str, npt.NDArray[Any]]],
        instructions: Sequence[npt.NDArray[np.float32]],
        seeds: Sequence[int],
        *,
        num_steps: int,
        guidance_scale: float,
        eta: float,
    ) -> list[EngineRequest]:
        """One of each robot, all arriving now.

        Args:
            observations: of each robot, name → [obs_steps, …].
            instructions: float32 [INSTRUCTION_DIM] of each.
            seeds: of each.
            num_steps: of all.
            guidance_scale: w.
            eta: 0 deterministic, 1 ancestral DDPM.
        """
        self._number += 1
        arrived_s = time.monotonic()
        asked = zip(observations, instructions, seeds, strict=True)
        return [
            EngineRequest(
                key=(f"robot {robot}", self._number),
                observation=observation,
                instruction=instruction,
                arrived_s=arrived_s,
                deadline_s=arrived_s + _PATIENCE_S,
                num_steps=num_steps,
                guidance_scale=guidance_scale,
                eta=eta,
                seed=seed,
                best_effort=True,
            )
            for robot, (observation, instruction, seed) in enumerate(asked)
        ]

    def answers(self, requests: Sequence[EngineRequest]) -> list[Answer]:
        """In the order of the requests.

        Raises:
            RuntimeError: one was refused.
        """
        outcomes: list[Outcome] = []
        for request in requests:
            outcomes += self._engine.submit(request)
        while self._engine.busy:
            outcomes += self._engine.advance()
        answers = {o.request.key: o for o in outcomes if isinstance(o, Answer)}
        if len(answers) != len(requests):
            raise RuntimeError(f"engine: expected {len(requests)} answers, got {outcomes}")
        return [answers[request.key] for request in requests]
