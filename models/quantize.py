"""int8 weights for an exported graph: products of int8 numbers instead of float32.

ONNX Runtime's operator MatMulNBits has weights in blocks of 64 inputs with a scale each, and rounds
a row's activations block by block when it multiplies them. So a row's answer does not depend on
whose rows share its call, as it would with one scale for all of a call: there one robot's outlier
would coarsen everybody's activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper
from onnxscript import optimizer

_BLOCK = 64
_INT8_PRODUCTS = 4
"""`accuracy_level` of the operator; the others multiply in floating point."""
_DOMAIN = "com.microsoft"
_NO_LIMIT = 1 << 40

Constants = dict[str, onnx.TensorProto]


def write_int8(source: Path, path: Path) -> None:
    """Write a graph with its constant matrices in int8.

    Each product with one of them, x·W + b, becomes x·W + b + x·0, where 0 is a column of zeros.
    That makes a row NaN in which anything is not finite: int8 has no NaN, and rounding a block that
    has one in it would give plain numbers.

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
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [new for node in graph.node for new in _in_int8(node, constants)]
    used = {name for node in nodes for name in node.input}
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    onnx.save(model, path)


def _in_int8(node: NodeProto, constants: Constants) -> Iterator[NodeProto]:
    """What stands for a node; weights that this needs are added to `constants`."""
    weight = constants.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
    if weight is None or len(weight.dims) != 2:
        yield node
        return
    options = {option.name: helper.get_attribute_value(option) for option in node.attribute}
    if options.get("transA") or {options.get("alpha", 1.0), options.get("beta", 1.0)} != {1.0}:
        msg = f"{node.name}: expected x·W + b of a linear layer, got {options}"
        raise ValueError(msg)
    rows = numpy_helper.to_array(weight)  # one for each output
    rows = rows if options.get("transB") else rows.T
    outputs, inputs = rows.shape
    name, out = f"{weight.name}.{'rows' if options.get('transB') else 'columns'}", node.output[0]
    rounded, scales = rounded_blocks(rows)
    for key, array in (
        (f"{name}.int8", rounded),
        (f"{name}.scales", scales),
        (f"zeros.{inputs}", np.zeros((inputs, 1), np.float32)),
    ):
        constants[key] = numpy_helper.from_array(array, key)
    x, _, *bias = node.input
    yield helper.make_node(
        "MatMulNBits",
        [x, f"{name}.int8", f"{name}.scales", "", "", *bias],
        [f"{out}.product"],
        domain=_DOMAIN,
        K=inputs,
        N=outputs,
        bits=8,
        block_size=_BLOCK,
        accuracy_level=_INT8_PRODUCTS,
    )
    yield helper.make_node("MatMul", [x, f"zeros.{inputs}"], [f"{out}.guard"])
    yield helper.make_node("Add", [f"{out}.product", f"{out}.guard"], [out])


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
    scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    rounded = np.rint(blocks / np.where(scales == 0, 1, scales)) + 128
    return rounded.astype(np.uint8), scales.ravel()
