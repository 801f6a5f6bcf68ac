"""All requests inside the engine as rows of preallocated arrays, one slot each.

What a network call needs of a request lies in arrays, so that gathering, updating and planning for
all of them are a few vector operations, and nothing is allocated per request and step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from models.guidance import scale_at
from models.samplers import draw_noise
from policy_server.backends.protocol import StepBuffers
from policy_server.planner import Plan
from policy_server.requests import EngineRequest

Slots = npt.NDArray[np.intp]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class InFlight:
    """Slots 0 .. size − 1.

    Attributes:
        request: by slot; None where it is free.
        used: bool [size].
        begun: bool [size], encoded and in possession of a plan.
        deadline_s, budget_s: float64 [size], when it is due, and how long after its arrival.
        network_rows: int64 [size], of a step in which guidance acts: the most that one has.
        fixed: bool [size], the client named the step count.
        expires: bool [size], it has not begun, and is not to be answered however late.
        promised: bool [size], time is kept free for it; otherwise others go first.
        steps_left: int64 [size], of the plan; for one that has not begun, fixed or 0.
        executed: int64 [size], steps done.
        last_call: int64 [size], number of the network call that it was last in.
        shared: int64 [size], sum over its calls of the requests in them.
        begun_s, encoded_s: float64 [size], instants.
        x_t: float32 [size, horizon, action_dim].
    """

    def __init__(self, size: int, chunk_shape: tuple[int, int], max_steps: int) -> None:
        self.size = size
        self.request: list[EngineRequest | None] = [None] * size
        self.used = np.zeros(size, bool)
        self.begun = np.zeros(size, bool)
        self.deadline_s = np.zeros(size)
        self.budget_s = np.zeros(size)
        self.network_rows = np.zeros(size, np.int64)
        self.fixed = np.zeros(size, bool)
        self.expires = np.zeros(size, bool)
        self.promised = np.zeros(size, bool)
        self.steps_left = np.zeros(size, np.int64)
        self.executed = np.zeros(size, np.int64)
        self.last_call = np.zeros(size, np.int64)
        self.shared = np.zeros(size, np.int64)
        self.begun_s = np.zeros(size)
        self.encoded_s = np.zeros(size)
        self.x_t = np.zeros((size, *chunk_shape), np.float32)
        self._x0_prev = np.zeros((size, *chunk_shape), np.float32)
        self._guidance_scale = np.zeros((size, max_steps), np.float32)
        self._timesteps = np.zeros((size, max_steps), np.int64)
        self._coefficients = np.zeros((size, max_steps, 4), np.float32)
        self._free = list(range(size - 1, -1, -1))

    def slots(self) -> Slots:
        """Those in use, in no particular order."""
        return self.used.nonzero()[0]

    def requests(self, slots: Slots) -> list[EngineRequest]:
        """The requests in these slots."""
        return [r for slot in slots.tolist() if (r := self.request[slot]) is not None]

    def add(self, request: EngineRequest, call: int, *, promised: bool) -> int:
        """Put a request into a free slot; `call` is the number of the latest network call."""
        slot = self._free.pop()
        self.request[slot] = request
        self.used[slot] = True
        self.begun[slot] = False
        self.deadline_s[slot] = request.deadline_s
        self.budget_s[slot] = request.deadline_s - request.arrived_s
        self.network_rows[slot] = request.network_rows
        self.fixed[slot] = request.num_steps is not None
        self.expires[slot] = not request.patient
        self.promised[slot] = promised
        self.steps_left[slot] = request.num_steps or 0
        self.executed[slot] = 0
        self.last_call[slot] = call
        self.shared[slot] = 0
        self.begun_s[slot] = self.encoded_s[slot] = 0.0
        return slot

    def remove(self, slot: int) -> None:
        """Free a slot."""
        self.request[slot] = None
        self.used[slot] = self.expires[slot] = False
        self._free.append(slot)

    def begin(
        self,
        slot: int,
        plan: Plan,
        noise: npt.NDArray[np.float32],
        *,
        begun_s: float,
        encoded_s: float,
    ) -> None:
        """Start denoising from `noise`, a draw like x_t."""
        self.begun[slot] = True
        self.expires[slot] = False
        self.begun_s[slot] = begun_s
        self.encoded_s[slot] = encoded_s
        self.x_t[slot] = noise
        self._x0_prev[slot] = 0
        self.set_plan(slot, plan)

    def set_plan(self, slot: int, plan: Plan) -> None:
        """Replace the steps still to do; those that are done stay in front of them."""
        done, count = self.executed[slot], len(plan.timesteps)
        self._timesteps[slot, done : done + count] = plan.timesteps
        self._coefficients[slot, done : done + count] = plan.coefficients
        request = self.request[slot]
        assert request is not None
        w = scale_at(request.guidance_scale, plan.acts)
        self._guidance_scale[slot, done : done + count] = w
        self.steps_left[slot] = count

    def next_timestep(self, slot: int) -> int:
        """Timestep of the sample now."""
        return int(self._timesteps[slot, self.executed[slot]])

    def executed_timesteps(self, slot: int) -> tuple[int, ...]:
        """First to last."""
        return tuple(self._timesteps[slot, : self.executed[slot]].tolist())

    def executed_rows(self, slot: int) -> int:
        """Network rows of its steps so far."""
        steps = int(self.executed[slot])
        if self.network_rows[slot] == 1:
            return steps
        return steps + int(np.count_nonzero(self._guidance_scale[slot, :steps]))

    def load(self, slots: Slots, steps: int, buffers: StepBuffers) -> Iterator[int]:
        """Fill what the next steps of these requests begin with, one step after another.

        Args:
            slots: at least one.
            steps: that are made at most; each of the requests has as many left.
            buffers: filled when the iterator is advanced: before the first step with the samples,
                too, which are moved on from one step to the next elsewhere.

        Yields:
            Network rows of a step.
        """
        count = len(slots)
        self.x_t.take(slots, 0, out=buffers.x_t[:count], mode="clip")
        self._x0_prev.take(slots, 0, out=buffers.x0_prev[:count], mode="clip")
        # for all steps at once: picking numbers out of a table costs ten times what a copy does
        step = self.executed[slots] + np.arange(steps)[:, None]
        guidance_scale = self._guidance_scale[slots, step]
        timesteps = self._timesteps[slots, step]
        coefficients = self._coefficients[slots, step]
        changes = (guidance_scale[1:] != guidance_scale[:-1]).any(axis=1).tolist()
        random = coefficients[:, :, 3].any(axis=1).tolist()
        of_timesteps, of_coefficients = buffers.timesteps[:count], buffers.coefficients[:count]
        network_rows = 0
        for i in range(steps):
            if not i or changes[i - 1]:
                network_rows = buffers.lay_out(guidance_scale[i], slots)
            of_timesteps[:] = timesteps[i]
            of_coefficients[:] = coefficients[i]
            if random[i]:
                self._draw(slots, timesteps[i], coefficients[i], buffers)
            yield network_rows

    def _draw(
        self, slots: Slots, timesteps: Ints, coefficients: Floats, buffers: StepBuffers
    ) -> None:
        """Fill in the noise of those that a step adds some to."""
        for row in coefficients[:, 3].nonzero()[0].tolist():
            request = self.request[slots[row]]
            assert request is not None
            shape = buffers.noise[row].shape
            buffers.noise[row] = draw_noise(request.seed, int(timesteps[row]), shape)

    def store(self, slots: Slots, buffers: StepBuffers, done: int, call: int) -> None:
        """Take over what `done` steps brought, the last of them network call number `call`."""
        count = len(slots)
        self.x_t[slots] = buffers.x_prev[:count]
        self._x0_prev[slots] = buffers.x0[:count]
        self.executed[slots] += done
        self.steps_left[slots] -= done
        self.last_call[slots] = call
        self.shared[slots] += count * done
