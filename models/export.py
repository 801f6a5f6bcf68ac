"""ONNX export of the guided step, for runtimes other than torch."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from models.guidance import branch_rows
from models.guided_step import GuidedStep
from models.policy import DiffusionPolicy

INPUT_NAMES = (
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
OUTPUT_NAMES = ("x_prev", "x0")


def example_inputs(policy: DiffusionPolicy) -> tuple[Tensor, ...]:
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


def export_onnx(policy: DiffusionPolicy, path: Path) -> None:
    """Write the policy's `GuidedStep` as one ONNX file, all row counts dynamic.

    Args:
        policy: in evaluation mode.
        path: written in one piece; an interrupted export leaves nothing.
    """
    step: GuidedStep = policy.guided_step()
    requests, network_rows, conditions = Dim("requests"), Dim("network_rows"), Dim("conditions")
    rows_of = {
        "conditions": conditions,
        "request_of": network_rows,
        "condition_of": network_rows,
    }
    partial = path.with_suffix(".partial")
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            torch.onnx.export(
                step,
                example_inputs(policy),
                partial,
                input_names=list(INPUT_NAMES),
                output_names=list(OUTPUT_NAMES),
                dynamic_shapes={name: {0: rows_of.get(name, requests)} for name in INPUT_NAMES},
                dynamo=True,
                external_data=False,
                verbose=False,
                optimize=True,
            )
        partial.replace(path)
    finally:
        exporter_log.setLevel(level)
        if partial.exists():
            os.unlink(partial)
