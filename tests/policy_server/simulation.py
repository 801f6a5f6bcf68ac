"""A simulated machine for the engine: only work moves its clock, and its backend takes time."""

import numpy as np

from models.grids import END
from models.instruction_encoder import INSTRUCTION_DIM
from models.samplers import alpha_bar_at, ddim_coefficients, draw_noise
from models.schedules import make_alpha_bar
from policy_server.backends.protocol import StepBuffers
from policy_server.calibration import measure_cost
from policy_server.engine import Engine, EngineLimits
from policy_server.planner import Planner, StepRange
from policy_server.requests import EngineRequest

CHUNK = (4, 2)
ALPHA_BAR = make_alpha_bar("cosine", 1000)
NOTHING_SEEN = {"state": np.zeros((1, 3), np.float32)}
NOTHING_SAID = np.zeros(INSTRUCTION_DIM, np.float32)


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def budget_for(work_s):
    """The budget that leaves so much for steps: when all is calm, 6 ms, at most 40%, stay free."""
    return min(work_s / 0.6, work_s + 0.006)


class NullBackend:
    """Computes nothing; calls and encodings take simulated time."""

    name = "null"

    def __init__(
        self, clock, max_requests=8, call_s=0.001, fixed_s=0.0, encode_s=0.0005, finish_s=0.0
    ):
        self.clock = clock
        self.call_s, self.fixed_s = call_s, fixed_s  # for each network row, and for each call
        self.encode_s, self.finish_s = encode_s, finish_s  # for each request
        self.pace = lambda: 1.0  # asked before everything: how much slower than that it is now
        self.buffers = StepBuffers(max_requests, CHUNK, 3)

    def take(self, duration_s):
        self.clock.now_s += duration_s * self.pace()

    def encode(self, slots, observations, instructions):
        self.take(self.encode_s * len(slots))

    def step(self, requests, network_rows):
        assert requests <= network_rows <= 2 * requests
        self.take(self.fixed_s + self.call_s * network_rows)
        self.buffers.x_prev[:requests] = 0

    def to_actions(self, x0):
        self.take(self.finish_s * len(x0))
        return x0.copy()


class SimulatedBackend(NullBackend):
    """Does the real update for every row, guided as in `GuidedStep`, and writes down what it did.

    Attributes:
        calls: of each call: {value of the request: (timestep, (a, b, c, d))}.
        poison: value of a request: what to raise, or what its x0 becomes.
        fault: asked before everything with the method's name; what it returns is raised.
    """

    name = "simulated"

    def __init__(self, clock, max_requests=8, **durations):
        super().__init__(clock, max_requests, **durations)
        self.calls = []
        self.encoded = []
        self.poison = {}
        self.fault = lambda _method: None

    @staticmethod
    def denoised(x_t, value):
        """Depends on the request (value), and through x_t on its seed and all steps before."""
        return 0.5 * np.tanh(x_t) + value

    def _raise_fault(self, method):
        if (error := self.fault(method)) is not None:
            raise error

    def encode(self, slots, observations, instructions):
        super().encode(slots, observations, instructions)
        self._raise_fault("encode")
        for slot, observation in zip(slots, observations, strict=True):
            value = observation["state"][0, 0]
            if isinstance(self.poison.get(("encode", value)), Exception):
                raise self.poison["encode", value]
            self.buffers.conditions[2 * slot] = value
            self.buffers.conditions[2 * slot + 1] = unconditional(value)
            self.encoded.append(value)

    def step(self, requests, network_rows):
        super().step(requests, network_rows)
        buffers, rows = self.buffers, self.buffers.rows
        buffers.x_prev[:requests] = np.nan  # a call that fails may leave anything
        self._raise_fault("step")
        values = buffers.conditions[2 * (rows.condition_of[:requests] // 2), 0]
        raised = [p for v in values if isinstance(p := self.poison.get(v), Exception)]
        if raised:
            raise raised[0]
        assert list(rows.request_of[rows.cond_row[:requests]]) == list(range(requests))
        assert list(rows.request_of[rows.uncond_row[:requests]]) == list(range(requests))
        assert max(rows.cond_row[:requests].max(), rows.uncond_row[:requests].max()) < network_rows
        condition = buffers.conditions[rows.condition_of[:network_rows], 0]
        cond, uncond = condition[rows.cond_row[:requests]], condition[rows.uncond_row[:requests]]
        guided = cond + buffers.guidance_scale[:requests] * (cond - uncond)
        call = {}
        for row, value in enumerate(values):
            a, b, c, d = buffers.coefficients[row].tolist()
            x0 = self.denoised(buffers.x_t[row], guided[row])
            x0 = np.full_like(x0, self.poison[value]) if value in self.poison else x0
            buffers.x0[row] = x0
            with np.errstate(invalid="ignore"):
                buffers.x_prev[row] = (
                    a * buffers.x_t[row]
                    + b * x0
                    + c * buffers.x0_prev[row]
                    + d * buffers.noise[row]
                )
            call[float(value)] = (int(buffers.timesteps[row]), (a, b, c, d))
        self.calls.append(call)

    def to_actions(self, x0):
        actions = super().to_actions(x0)
        self._raise_fault("to_actions")
        return actions


def value_of(request):
    """What tells requests apart in the backend's log; exact in float32."""
    return float(request.observation["state"][0, 0])


def unconditional(value):
    """The condition part without the instruction, of an observation."""
    return 0.25 - 0.5 * value


def guided_value(request):
    """What guidance makes of both condition parts: (1 + w)·cond − w·uncond."""
    value, w = value_of(request), request.guidance_scale
    return (1 + w) * value - w * unconditional(value)


def acts(request, t, interval):
    """Whether guidance does at this timestep, by the standard deviation of the noise there."""
    low, high = interval
    return request.guidance_scale == -1 or low**2 <= 1 - ALPHA_BAR[t] <= high**2


def expected_actions(request, timesteps, interval=(0.0, 1.0)):
    """What this request must get if these timesteps were executed: a plain loop of its own."""
    x = draw_noise(request.seed, 1000, CHUNK)
    for t, t_prev in zip(timesteps, [*timesteps[1:], END], strict=True):
        a, b, _, d = ddim_coefficients(ALPHA_BAR[t], alpha_bar_at(ALPHA_BAR, t_prev), request.eta)[
            0
        ]
        value = (guided_value if acts(request, t, interval) else value_of)(request)
        x0 = SimulatedBackend.denoised(x, value)
        x = a * x + b * x0 + d * draw_noise(request.seed, t, CHUNK)
    return x


def expected_actions_2m(request, timesteps):
    """The same for DPM-Solver++(2M), from its algorithm 2; too long a step is of first order."""
    x = draw_noise(request.seed, 1000, CHUNK)
    x0_before = lambda_before = None
    for t, t_prev in zip(timesteps, [*timesteps[1:], END], strict=True):
        x0 = SimulatedBackend.denoised(x, guided_value(request))
        if t_prev == END:
            return x0
        (alpha, sigma), (alpha_prev, sigma_prev) = (
            (np.sqrt(ALPHA_BAR[i]), np.sqrt(1 - ALPHA_BAR[i])) for i in (t, t_prev)
        )
        lambda_t = np.log(alpha / sigma)
        h = np.log(alpha_prev / sigma_prev) - lambda_t
        estimate = x0
        if x0_before is not None:
            h_before = lambda_t - lambda_before
            if h <= 2 * h_before:
                estimate = x0 + h / (2 * h_before) * (x0 - x0_before)
        x = sigma_prev / sigma * x - alpha_prev * np.expm1(-h) * estimate
        x0_before, lambda_before = x0, lambda_t
    raise AssertionError("timesteps: expected at least one")


class World:
    """Engine, planner, cost model and backend on one simulated clock, calibrated."""

    def __init__(
        self,
        min_steps=2,
        max_useful_steps=10,
        max_in_flight=8,
        max_call_s=0.003,
        grid="trailing",
        sampler="ddim",
        guidance_interval=(0.0, 1.0),
        backend=SimulatedBackend,
        clock=None,
        **durations,
    ):
        self.clock = clock or Clock()
        self.backend = backend(self.clock, max_in_flight, **durations)
        self.planner = Planner(
            StepRange(min_steps, max_useful_steps, 1000),
            ALPHA_BAR,
            grid,
            sampler,
            guidance_interval,
        )
        # as the server does it
        self.cost = measure_cost(self.backend, NOTHING_SEEN, self.clock, max_call_s)
        limits = EngineLimits(max_call_s, max_in_flight)
        self.engine = Engine(self.backend, self.planner, self.cost, self.clock, limits)
        self.next_id = 0
        if isinstance(self.backend, SimulatedBackend):
            self.backend.calls.clear()
            self.backend.encoded.clear()

    def request(self, budget_s=0.08, session="robot", value=None, arrived_s=None, **fields):
        """A request with a value of its own; it arrives now unless it is told when."""
        self.next_id += 1
        value = self.next_id / 128 if value is None else value
        arrived_s = self.clock() if arrived_s is None else arrived_s
        defaults = {
            "num_steps": None,
            "guidance_scale": 0.0,
            "eta": 0.0,
            "seed": self.next_id,
            "best_effort": False,
        }
        return EngineRequest(
            key=(session, self.next_id),
            observation={"state": np.full((1, 3), value, np.float32)},
            instruction=NOTHING_SAID,
            arrived_s=arrived_s,
            deadline_s=arrived_s + budget_s,
            **{**defaults, **fields},
        )

    def executed(self, request):
        """(timestep, (a, b, c, d)) of every step that the backend did for this request."""
        value = float(request.observation["state"][0, 0])
        return [call[value] for call in self.backend.calls if value in call]

    def finish(self):
        outcomes = []
        while self.engine.busy:
            outcomes.extend(self.engine.advance())
        return outcomes

    def serve(self, arrivals, until_s=np.inf):
        """Let requests arrive while others are served, and finish all.

        Args:
            arrivals: (when, fields of the request) by time; what arrives during a call is seen
                after it, but its time runs from when it arrived.
            until_s: stop then, whatever is inside.
        """
        outcomes, next_one = [], 0
        while self.clock() < until_s and (next_one < len(arrivals) or self.engine.busy):
            while next_one < len(arrivals) and arrivals[next_one][0] <= self.clock():
                arrived_s, fields = arrivals[next_one]
                outcomes += self.engine.submit(self.request(arrived_s=arrived_s, **fields))
                next_one += 1
            if self.engine.busy:
                outcomes += self.engine.advance()
            elif next_one < len(arrivals):
                self.clock.now_s = arrivals[next_one][0]
        return outcomes

    def run(self, *requests):
        refused = [refusal for request in requests for refusal in self.engine.submit(request)]
        return refused + self.finish()
