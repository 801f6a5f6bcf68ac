"""ONNX export of what backends run, for runtimes other than torch: guided step and encoder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from models.checkpoint import ENCODER_ONNX, INT8_ONNX, ONNX
from models.guidance import branch_rows
from models.instruction_encoder import INSTRUCTION_DIM
from models.policy import DiffusionPolicy

STEP_INPUTS = (
    "x_t",
    "x0_prev",
    "timesteps",
    "conditions",
    "request_of",
    "condition_of",
    "cond_row",
    "uncond_row",
    "guidance_scale",
    "coefficients",
    "noise",
)
STEP_OUTPUTS = ("x_prev", "x0")
ENCODER_OUTPUT = "conditions"


def observation_input(name: str) -> str:
    """What the array `name` of an observation is called in the encoder's graph."""
    return f"observation.{name}"


def step_inputs(policy: DiffusionPolicy) -> tuple[Tensor, ...]:
    """Zero inputs of `GuidedStep.forward` for 3 requests, 2 of them guided."""
    w = np.array([0.0, 1.0, 2.0], np.float32)
    rows = len(w)
    branches = branch_rows(w, np.arange(rows))
    chunk = torch.zeros(rows, *policy.chunk_shape)
    return (
        chunk,
        chunk.clone(),
        torch.zeros(rows, dtype=torch.int64),
        torch.zeros(2 * rows + 1, policy.network.film_dim),
        torch.from_numpy(branches.request_of),
        torch.from_numpy(branches.condition_of),
        torch.from_numpy(branches.cond_row),
        torch.from_numpy(branches.uncond_row),
        torch.from_numpy(w),
        torch.zeros(rows, 4),
        chunk.clone(),
    )


def encoder_inputs(policy: DiffusionPolicy) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """Zero inputs of `ConditionEncoder.forward` for 3 requests, both branches of each."""
    rows = 3
    observation = tuple(
        torch.zeros(rows, *array.shape, dtype=getattr(torch, array.dtype))
        for array in policy.spec.observation.values()
    )
    return (
        observation,
        torch.zeros(rows, INSTRUCTION_DIM),
        torch.arange(rows).repeat_interleave(2),
        torch.tensor([False, True]).repeat(rows),
    )


def export_graphs(policy: DiffusionPolicy, folder: Path, *, int8: bool) -> None:
    """Write the graphs of step and encoder into a folder (seconds).

    Args:
        policy: in evaluation mode.
        folder: an interrupted export leaves the files that were whole already.
        int8: write the step with int8 weights, too.
    """
    export_step(policy, folder / ONNX)
    export_encoder(policy, folder / ENCODER_ONNX)
    if not int8:
        return
    from models.quantize import write_int8  # noqa: PLC0415 - nobody else waits for its imports

    with _quiet_exporter(), _whole(folder / INT8_ONNX) as partial:
        write_int8(folder / ONNX, partial)


def export_step(policy: DiffusionPolicy, path: Path) -> None:
    """Write the policy's `GuidedStep` as one ONNX file, all row counts dynamic.

    Args:
        policy: in evaluation mode.
        path: written in one piece; an interrupted export leaves nothing.
    """
    requests, network_rows, conditions = Dim("requests"), Dim("network_rows"), Dim("conditions")
    rows_of = {
        "conditions": conditions,
        "request_of": network_rows,
        "condition_of": network_rows,
    }
    _export(
        policy.guided_step(),
        step_inputs(policy),
        path,
        input_names=STEP_INPUTS,
        output_names=STEP_OUTPUTS,
        dynamic_shapes={name: {0: rows_of.get(name, requests)} for name in STEP_INPUTS},
    )


def export_encoder(policy: DiffusionPolicy, path: Path) -> None:
    """Write the policy's `ConditionEncoder` as one ONNX file, all row counts dynamic.

    Args:
        policy: in evaluation mode.
        path: written in one piece; an interrupted export leaves nothing.
    """
    requests, rows = Dim("requests"), Dim("rows")
    inputs = encoder_inputs(policy)
    shapes = {
        "observation": tuple({0: requests} for _ in inputs[0]),
        "instruction": {0: requests},
        "request_of": {0: rows},
        "drop": {0: rows},
    }
    arrays = [observation_input(name) for name in policy.spec.observation]
    _export(
        policy.condition_encoder(),
        inputs,
        path,
        input_names=[*arrays, "instruction", "request_of", "drop"],
        output_names=[ENCODER_OUTPUT],
        dynamic_shapes=shapes,
    )


def _export(
    module: nn.Module,
    example: tuple[Any, ...],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: dict[str, Any],
) -> None:
    with _quiet_exporter(), _whole(path) as partial:
        program = torch.onnx.export(
            module,
            example,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            verbose=False,
            optimize=True,
        )
        assert program is not None
        _drop_idle_reshapes(program.model.graph)
        program.save(partial, external_data=False)


def _drop_idle_reshapes(graph: ir.Graph) -> None:
    """The exporter makes vectors of indices, before it picks rows by them, of what is a vector."""
    for node in list(graph):
        if node.op_type != "Reshape":
            continue
        given, made = node.inputs[0], node.outputs[0]
        if given is None or given.shape is None or made.shape is None:
            continue
        if len(given.shape) == len(made.shape) == 1:
            made.replace_all_uses_with(given)
            graph.remove(node, safe=True)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes this file in one piece, if nothing goes wrong."""
    partial = path.with_suffix(".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns and logs about its own internals."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
