"""int8 weights for an exported graph: products of int8 numbers instead of float32.

ONNX Runtime's `MatMulNBits` keeps weights as int8 in blocks of 64 inputs with a scale each, and
rounds a row's activations block by block when it multiplies them. So a row's answer does not depend
on whose rows share its call, as it would with one scale for a whole call: there one robot's outlier
would coarsen everybody's activations.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxscript import optimizer

_BLOCK = 64
_INT8_ACTIVATIONS = 4
"""`accuracy_level` of the operator; the others multiply in floating point."""
_NO_LIMIT = 1 << 40


def quantize_weights(source: Path, path: Path) -> None:
    """Write the graph in `source` with its constant matrices in int8.

    Args:
        source: as `models.export` writes it.
        path: written in one piece.
    """
    # convolutions have their weights rearranged in the graph, which must be done before
    model = optimizer.optimize(
        onnx.load(source),
        onnx_shape_inference=False,
        input_size_limit=_NO_LIMIT,
        output_size_limit=_NO_LIMIT,
    )
    guards = _split_products(model)
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=8,
        block_size=_BLOCK,
        is_symmetric=True,
        accuracy_level=_INT8_ACTIVATIONS,
        nodes_to_exclude=guards,
    )
    quantizer.process()
    partial = path.with_suffix(".partial")
    try:
        onnx.save(quantizer.model.model, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _split_products(model: onnx.ModelProto) -> list[str]:
    """Make each product with a constant matrix W of the graph a MatMul that can be quantised.

    x·W + b becomes x·W + x·0 + b, where 0 is a column of zeros: whatever of x is not finite makes
    all of its row NaN there, while rounding to int8 would lose a single NaN in a block.

    Returns:
        Names of the nodes x·0, which stay as they are.
    """
    graph = model.graph
    del graph.value_info[:]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    guards: list[str] = []
    nodes: list[NodeProto] = []
    for node in graph.node:
        weight = constants.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or len(weight.dims) != 2:
            nodes.append(node)
            continue
        nodes += _split(node, weight, constants)
        guards.append(nodes[-2].name)
    used = {name for node in nodes for name in node.input}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(t for name, t in constants.items() if name in used)
    return guards


def _split(
    node: NodeProto, weight: onnx.TensorProto, constants: dict[str, onnx.TensorProto]
) -> Iterator[NodeProto]:
    """The product, its guard, and their sum; what they need is added to `constants`."""
    options = {option.name: helper.get_attribute_value(option) for option in node.attribute}
    if options.get("transA") or {options.get("alpha", 1.0), options.get("beta", 1.0)} != {1.0}:
        msg = f"{node.name}: expected x·W + b of a linear layer, got {options}"
        raise ValueError(msg)
    x, _, *bias = node.input
    name = weight.name
    if options.get("transB"):
        name = f"{weight.name}.transposed"
        turned = np.ascontiguousarray(numpy_helper.to_array(weight).T)
        constants[name] = numpy_helper.from_array(turned, name)
    inputs = constants[name].dims[0]
    zeros = f"zeros.{inputs}"
    constants[zeros] = numpy_helper.from_array(np.zeros((inputs, 1), np.float32), zeros)
    product, guard = f"{node.output[0]}.product", f"{node.output[0]}.guard"
    yield helper.make_node("MatMul", [x, name], [product], name=product)
    yield helper.make_node("MatMul", [x, zeros], [guard], name=guard)
    yield helper.make_node("Sum", [product, *bias, guard], node.output, name=node.name)
