"""int8 weights for an exported graph: products of int8 numbers instead of float32.

Both operands are rounded, activations as they come (dynamic W8A8), each row by itself: a row's
answer does not depend on whose rows share its call, as it would with one scale for all of a call,
where one robot's outlier would coarsen everybody's activations. There are two kinds of products:

- Networks whose rows have positions multiply many rows by each weight (`_by_rows`): a scale for
  each row of activations and for each output.
- Those that have none wait for their weights (`_in_blocks`): ONNX Runtime's MatMulNBits, with
  weights and activations in blocks of 64 inputs with a scale each.

int8 has no NaN, and rounding one gives a plain number. So each product has something added, or is
multiplied by something, that is NaN where anything in the row is not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper
from onnxscript import optimizer

FEWEST_WEIGHTS = 1 << 15
"""Smaller products take longer to round than they save."""
_BLOCK = 64
_INT8_PRODUCTS = 4
"""`accuracy_level` of MatMulNBits; the others multiply in floating point."""
_LARGEST, _MIDDLE = 127, 128
_DOMAIN = "com.microsoft"
_NO_LIMIT = 1 << 40


def write_int8(source: Path, path: Path) -> None:
    """Write a graph with its large constant matrices in int8.

    Args:
        source: as `models.export` writes it: linear layers are Gemm or MatMul.
        path: of the new one.
    """
    # convolutions have their weights rearranged in the graph, which must be done before
    model = optimizer.optimize(
        onnx.load(source),
        onnx_shape_inference=False,
        input_size_limit=_NO_LIMIT,
        output_size_limit=_NO_LIMIT,
    )
    graph = model.graph
    products = _Products(model)
    nodes = [new for node in graph.node for new in products.instead_of(node)]
    used = {name for node in nodes for name in node.input}
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(t for name, t in products.constants.items() if name in used)
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    onnx.save(model, path)


@dataclass(frozen=True)
class _Product:
    """out = x·W + bias.

    Attributes:
        x: name of the activations.
        bias: its name, if there is one.
        weight: of W; with the way it lies, since a matrix may be of two products.
        rows: of W, one for each output.
        out: name of the result.
    """

    x: str
    bias: list[str]
    weight: str
    rows: npt.NDArray[np.float32]
    out: str


class _Products:
    """Rewrites products of one graph.

    Attributes:
        constants: of the graph by name, and those that the new nodes need.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        shapes = onnx.shape_inference.infer_shapes(model).graph.value_info
        dims = {value.name: list(value.type.tensor_type.shape.dim)[:-1] for value in shapes}
        self._vectors = {
            name for name, of in dims.items() if [d.dim_param for d in of] == ["network_rows"]
        }
        self._rounded: set[str] = set()

    def instead_of(self, node: NodeProto) -> Iterator[NodeProto]:
        """What stands for a node; itself, if it is no product worth it."""
        product = self._product(node)
        if product is None:
            yield node
        elif product.x in self._vectors:
            yield from self._in_blocks(product)
        else:
            yield from self._by_rows(product)

    def _product(self, node: NodeProto) -> _Product | None:
        weight = self.constants.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or len(weight.dims) != 2 or np.prod(weight.dims) < FEWEST_WEIGHTS:
            return None
        options = {option.name: helper.get_attribute_value(option) for option in node.attribute}
        if options.get("transA") or {options.get("alpha", 1.0), options.get("beta", 1.0)} != {1.0}:
            msg = f"{node.name}: expected x·W + b of a linear layer, got {options}"
            raise ValueError(msg)
        matrix = numpy_helper.to_array(weight)
        x, _, *bias = node.input
        if options.get("transB"):
            return _Product(x, bias, f"{weight.name}.rows", matrix, node.output[0])
        return _Product(x, bias, f"{weight.name}.columns", matrix.T, node.output[0])

    def _add(self, constants: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, array in constants.items():
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)

    def _by_rows(self, product: _Product) -> Iterator[NodeProto]:
        """x·W = largest·s·(int8(x/largest)·int8(W/s)), `largest` being that of |x| in each row."""
        x, out = product.x, product.out
        scales = np.abs(product.rows).max(axis=1) / np.float32(_LARGEST)
        rounded = np.rint(product.rows / np.where(scales == 0, 1, scales)[:, None])
        self._add(
            {
                f"{product.weight}.int8": rounded.T.astype(np.int8),
                f"{product.weight}.scales": scales,
                "int8.unit": np.array(1 / _LARGEST, np.float32),
                "int8.middle": np.array(_MIDDLE, np.uint8),
                "int8.nothing": np.array(0, np.float32),
                "int8.last": np.array([-1]),
            }
        )
        if x not in self._rounded:
            self._rounded.add(x)
            yield helper.make_node("Abs", [x], [f"{x}.sizes"])
            for reduce, to in ("ReduceMax", "largest"), ("ReduceSum", "sum"):
                yield helper.make_node(reduce, [f"{x}.sizes", "int8.last"], [f"{x}.{to}"])
            # the sum is NaN or infinite if anything in the row is; the largest need not be
            yield helper.make_node("Mul", [f"{x}.sum", "int8.nothing"], [f"{x}.guard"])
            yield helper.make_node("Add", [f"{x}.largest", f"{x}.guard"], [f"{x}.scale"])
            yield helper.make_node("Div", [x, f"{x}.scale"], [f"{x}.scaled"])
            rounding = [f"{x}.scaled", "int8.unit", "int8.middle"]
            yield helper.make_node("QuantizeLinear", rounding, [f"{x}.int8"])
        weights, scale_of_weights = f"{product.weight}.int8", f"{product.weight}.scales"
        yield helper.make_node(
            "MatMulIntegerToFloat",
            [f"{x}.int8", weights, "int8.unit", scale_of_weights, "int8.middle"],
            [f"{out}.scaled"],
            domain=_DOMAIN,
        )
        # a row of zeros was divided by 0 and rounded to anything, which is nothing times 0
        unbiased = f"{out}.product" if product.bias else out
        yield helper.make_node("Mul", [f"{out}.scaled", f"{x}.scale"], [unbiased])
        if product.bias:
            yield helper.make_node("Add", [unbiased, *product.bias], [out])

    def _in_blocks(self, product: _Product) -> Iterator[NodeProto]:
        """x·W + bias + x·0, where 0 is a column of zeros."""
        rounded, scales = rounded_blocks(product.rows)
        outputs, inputs = product.rows.shape
        weights = [f"{product.weight}.int8", f"{product.weight}.scales"]
        zeros = f"int8.zeros.{inputs}"
        self._add({weights[0]: rounded, weights[1]: scales, zeros: np.zeros((inputs, 1), "f4")})
        yield helper.make_node(
            "MatMulNBits",
            [product.x, *weights, "", "", *product.bias],
            [f"{product.out}.product"],
            domain=_DOMAIN,
            K=inputs,
            N=outputs,
            bits=8,
            block_size=_BLOCK,
            accuracy_level=_INT8_PRODUCTS,
        )
        guard, out = f"{product.out}.guard", product.out
        yield helper.make_node("MatMul", [product.x, zeros], [guard])
        yield helper.make_node("Add", [f"{product.out}.product", guard], [out])


def rounded_blocks(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Weights as MatMulNBits has them: scale·(rounded − 128).

    Args:
        rows: [outputs, inputs].

    Returns:
        (rounded [outputs, blocks, 64], scales [outputs·blocks]); zeros beyond the last input.
    """
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % _BLOCK)))
    blocks = padded.reshape(len(rows), -1, _BLOCK)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(_LARGEST)
    rounded = np.rint(blocks / np.where(scales == 0, 1, scales)) + _MIDDLE
    return rounded.astype(np.uint8), scales.ravel()
