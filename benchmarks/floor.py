"""What this machine does at best, measured: multiply-adds a second, and bytes read a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from models.describe import NetworkCost
from models.networks.config import NetworkConfig
from policy_server.backends.bound_graph import BoundGraph

_SIZE = 512
"""Rows and columns of the product: all three matrices fit the cache of one core, nearly."""
_REPEATS = 5
_FLOAT_BYTES = 4


class MatrixRate:
    """Best seen rate of a product of two square matrices, with the threads of a network call.

    By ONNX Runtime, whose products are the fastest here of what is installed: twice as fast as
    torch's on a processor of another maker than its library's.
    """

    def __init__(self, num_threads: int) -> None:
        shape = (_SIZE, _SIZE)
        rng = np.random.default_rng(0)
        factors = {name: rng.standard_normal(shape).astype(np.float32) for name in ("a", "b")}
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["a", "b"], ["c"])],
            "product",
            [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("c", TensorProto.FLOAT, shape)],
            [onnx.numpy_helper.from_array(factors["b"], "b")],
        )
        opset = [helper.make_opsetid("", 18)]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "product.onnx"
            onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
            whole = {"a": factors["a"], "c": np.zeros(shape, np.float32)}
            self._product = BoundGraph(path, num_threads, whole, {}, {})
        self._best_s = float("inf")

    def measure(self) -> None:
        """Once more; what others do on this machine only ever makes it slower."""
        self._best_s = min(self._best_s, _best_s(lambda: self._product.run(1, 1)))

    @property
    def operations_per_s(self) -> float:
        """Floating-point operations, two a multiply-add."""
        return 2 * _SIZE**3 / self._best_s


class Bandwidth:
    """Best seen rate of reading float32 weights again and again, all of so many bytes.

    They are summed up, or one half multiplied with the other: whichever is faster.
    """

    def __init__(self, num_bytes: int) -> None:
        self._weights = torch.ones(2, num_bytes // _FLOAT_BYTES // 2)
        self._best_s = float("inf")

    def measure(self) -> None:
        """Once more, with the threads that torch has been given."""
        one, other = self._weights
        fastest = min(_best_s(self._weights.sum), _best_s(lambda: one.dot(other)))
        self._best_s = min(self._best_s, fastest)

    @property
    def bytes_per_s(self) -> float:
        """Bytes read."""
        return self._weights.numel() * _FLOAT_BYTES / self._best_s


def _best_s(measured: Callable[[], object]) -> float:
    best_s = float("inf")
    for _ in range(_REPEATS):
        begun_s = time.perf_counter()
        measured()
        best_s = min(best_s, time.perf_counter() - begun_s)
    return best_s


@dataclass(frozen=True)
class StepWork:
    """What a call of a network cannot do without.

    Attributes:
        operations: floating-point operations of one network row; two a multiply-add.
        weight_bytes: of the float32 weights that a call reads, however many its rows.
    """

    operations: int
    weight_bytes: int

    @classmethod
    def of(cls, config: NetworkConfig) -> StepWork:
        """Count; the network is built without memory for its weights."""
        with torch.device("meta"):
            network = config.build()
            x_t = torch.empty(1, config.horizon, config.action_dim)
            weights = list(cast("nn.Module", network).parameters())
            output = network.denoise(x_t, torch.empty(1, network.film_dim))
            read = torch.autograd.grad(output.sum(), weights, allow_unused=True)
        num_read = sum(gradient.numel() for gradient in read if gradient is not None)
        return cls(NetworkCost.of(config).step_operations, _FLOAT_BYTES * num_read)

    def floor_s(self, rows: int, operations_per_s: float, bytes_per_s: float) -> float:
        """Seconds that a call of so many network rows takes at the very least."""
        return max(rows * self.operations / operations_per_s, self.weight_bytes / bytes_per_s)
