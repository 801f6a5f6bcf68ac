"""A simulated machine for the engine: only work moves its clock, and its backend takes time."""

import numpy as np

from models.grids import END
from models.instruction_encoder import INSTRUCTION_DIM
from models.samplers import alpha_bar_at, ddim_coefficients, draw_noise
from models.schedules import make_alpha_bar
from policy_server.backends.protocol import StepBuffers
from policy_server.cost_model import CostModel
from policy_server.engine import Engine, EngineRequest
from policy_server.planner import Planner, StepRange

CHUNK = (4, 2)
ALPHA_BAR = make_alpha_bar("cosine", 1000)


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class SimulatedBackend:
    """Does the real update; every call takes `call_s` of simulated time for each network row."""

    name = "simulated"

    def __init__(self, clock, call_s=0.001, encode_s=0.0005):
        self.clock, self.call_s, self.encode_s = clock, call_s, encode_s
        self.buffers = StepBuffers(1, CHUNK, 3)
        self.calls = []
        self.poison = None

    @staticmethod
    def denoised(x_t, value):
        """Depends on the request (value), and through x_t on its seed and all steps before."""
        return 0.5 * np.tanh(x_t) + value

    def encode(self, slot, observation, instruction):
        self.clock.now_s += self.encode_s
        self.buffers.conditions[2 * slot] = observation["state"][0]

    def step(self, requests, network_rows):
        assert requests == 1
        self.clock.now_s += self.call_s * network_rows
        if isinstance(self.poison, Exception):
            raise self.poison
        buffers = self.buffers
        a, b, c, d = buffers.coefficients[0]
        x0 = self.denoised(buffers.x_t[0], buffers.conditions[0, 0])
        if self.poison is not None:
            x0 = np.full_like(x0, self.poison)
        buffers.x0[0] = x0
        with np.errstate(invalid="ignore"):
            buffers.x_prev[0] = (
                a * buffers.x_t[0] + b * x0 + c * buffers.x0_prev[0] + d * buffers.noise[0]
            )
        self.calls.append((int(buffers.timesteps[0]), (float(a), float(b), float(d))))

    def to_actions(self, x0):
        return x0.copy()


def expected_actions(request, timesteps):
    """What this request must get if these timesteps were executed: a plain loop of its own."""
    x = draw_noise(request.seed, 1000, CHUNK)
    for t, t_prev in zip(timesteps, [*timesteps[1:], END], strict=True):
        a, b, _, d = ddim_coefficients(ALPHA_BAR[t], alpha_bar_at(ALPHA_BAR, t_prev), request.eta)[
            0
        ]
        x0 = SimulatedBackend.denoised(x, request.observation["state"][0, 0])
        x = a * x + b * x0 + d * draw_noise(request.seed, t, CHUNK)
    return x


def expected_actions_2m(request, timesteps):
    """The same for DPM-Solver++(2M), from its algorithm 2; too long a step is of first order."""
    x = draw_noise(request.seed, 1000, CHUNK)
    x0_before = lambda_before = None
    for t, t_prev in zip(timesteps, [*timesteps[1:], END], strict=True):
        x0 = SimulatedBackend.denoised(x, request.observation["state"][0, 0])
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
        max_waiting=8,
        grid="trailing",
        sampler="ddim",
        **backend,
    ):
        self.clock = Clock()
        self.backend = SimulatedBackend(self.clock, **backend)
        self.cost = CostModel()
        steps = StepRange(min_steps, max_useful_steps, 1000)
        self.planner = Planner(steps, self.cost, ALPHA_BAR, grid, sampler)
        self.engine = Engine(self.backend, self.planner, self.cost, self.clock, max_waiting)
        self.next_id = 0
        for w in (0.0, 1.0):  # calibration, as the server does it
            for _ in range(3):
                self.run(self.request(num_steps=10, guidance_scale=w, budget_s=10.0))
        self.backend.calls.clear()

    def request(self, budget_s=0.08, session="robot", value=None, **fields):
        self.next_id += 1
        value = self.next_id / 100 if value is None else value
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
            instruction=np.zeros(INSTRUCTION_DIM, np.float32),
            arrived_s=self.clock(),
            deadline_s=self.clock() + budget_s,
            **{**defaults, **fields},
        )

    def finish(self):
        outcomes = []
        while self.engine.busy:
            outcomes.extend(self.engine.advance())
        return outcomes

    def run(self, *requests):
        refused = [refusal for request in requests for refusal in self.engine.submit(request)]
        return refused + self.finish()
