"""What networks cost: parameters, operations of a step and of a condition, shapes; as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from client.sims.desk.spec import DESK_SPEC
from client.sims.desk.spec import TASKS as DESK_TASKS
from client.sims.pusht.spec import PUSHT_SPEC
from client.sims.pusht.spec import TASKS as PUSHT_TASKS
from client.specs import PolicySpec
from models.networks.config import NetworkConfig
from models.networks.kinds import KINDS
from models.vision import VisionConfig, camera_encoders

EXPLANATION = """\
Operations are those of matrix products and convolutions as torch's counter has them: two for each
multiply-add, nothing for norms and activations.
  step        every denoising step, for each network row: one row a request, two when guided
  condition   once a request, for each of its two branches
  film_dim    numbers of the flat vector in which time and condition reach a step
"""


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs.

    Attributes:
        parameters: numbers that are trained.
        film_dim: numbers in the FiLM parameters of one row.
        step_operations: of `denoise` for one row; two a multiply-add.
        condition_operations: of `condition_part` for one row; two a multiply-add.
    """

    parameters: int
    film_dim: int
    step_operations: int
    condition_operations: int

    @classmethod
    def of(cls, config: NetworkConfig) -> Self:
        """Count; the network is built without memory for its weights."""
        with torch.device("meta"):
            network = config.build()
            parameters = sum(p.numel() for p in cast("nn.Module", network).parameters())
            x_t = torch.empty(1, config.horizon, config.action_dim)
            film = torch.empty(1, network.film_dim)
            observation = torch.empty(1, config.observation_dim)
            instruction = torch.empty(1, config.instruction_dim)
            drop = torch.empty(1, dtype=torch.bool)
            with torch.no_grad(), FlopCounterMode(display=False) as step:
                network.denoise(x_t, film)
            with torch.no_grad(), FlopCounterMode(display=False) as condition:
                network.condition_part(observation, instruction, drop)
        return cls(
            parameters, network.film_dim, step.get_total_flops(), condition.get_total_flops()
        )


def default_configs() -> dict[str, list[NetworkConfig]]:
    """Every kind of network in its default sizes, by the task whose shapes it fits."""
    tasks: list[tuple[PolicySpec, int]] = [
        (DESK_SPEC, len(DESK_TASKS)),
        (PUSHT_SPEC, len(PUSHT_TASKS)),
    ]
    return {
        # as many numbers an instruction as its projection has: one less than there are tasks
        spec.task: [config.for_spec(spec, num_tasks - 1) for config in KINDS.values()]
        for spec, num_tasks in tasks
    }


def cost_table(title: str, configs: Iterable[NetworkConfig]) -> str:
    """Lines for people: the shapes, then a row for each of these networks, all of one shape."""
    configs = list(configs)
    shapes = configs[0]
    chunk = f"[n, {shapes.horizon}, {shapes.action_dim}]"
    lines = [
        f"{title}: x_t {chunk}, observation [n, {shapes.observation_dim}], "
        f"instruction [n, {shapes.instruction_dim}] → {chunk}",
        f"  {'network':<12}{'parameters':>12}{'step, MFLOP':>14}{'condition, MFLOP':>18}"
        f"{'film_dim':>10}   sizes",
    ]
    for config in configs:
        cost = NetworkCost.of(config)
        lines.append(
            f"  {config.kind:<12}{cost.parameters:>12,}{cost.step_operations / 1e6:>14.2f}"
            f"{cost.condition_operations / 1e6:>18.2f}{cost.film_dim:>10,}   {_sizes(config)}"
        )
    return "\n".join(lines) + "\n"


def camera_costs(spec: PolicySpec, vision: VisionConfig | None) -> dict[str, tuple[int, int]]:
    """By camera: parameters of its encoder, and operations of looking at one frame."""
    costs = {}
    for name, encoder in camera_encoders(spec, vision).items():
        frame = torch.empty(1, 1, *spec.observation[name].shape[1:], dtype=torch.uint8)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder(frame)
        parameters = sum(parameter.numel() for parameter in encoder.parameters())
        costs[name] = (parameters, counter.get_total_flops())
    return costs


def camera_table(spec: PolicySpec, vision: VisionConfig) -> str:
    """Lines for people: what it costs to look at a frame of each camera, once a request."""
    lines = ["cameras, each step of the observation, once a request:"]
    patches = f" and {vision.num_patches} patches of as many" if vision.patch else ""
    for name, (parameters, operations) in camera_costs(spec, vision).items():
        cut, whole = (
            " × ".join(map(str, size)) for size in (vision.crop, spec.observation[name].shape[1:3])
        )
        lines.append(
            f"  {name}: {cut} of {whole} pixels → {vision.features} numbers{patches}: "
            f"{parameters:,} parameters, {operations / 1e6:.2f} MFLOP"
        )
    return "\n".join(lines) + "\n"


def _sizes(config: NetworkConfig) -> str:
    """What is not a shape, as in `widths=(64, 128, 256) kernel=5`."""
    shapes = {field.name for field in dataclasses.fields(NetworkConfig)}
    return " ".join(
        f"{field.name}={getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.name not in shapes
    )
