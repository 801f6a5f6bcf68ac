"""policy_server/backends/bound_graph.py: on which processors int8 products need more care."""

import platform

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from policy_server.backends.bound_graph import int8_products_overflow, load_session


@pytest.mark.parametrize(
    ("machine", "flags", "overflow"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("x86_64", "fpu avx2 avx512f", True),
        ("x86_64", None, True),
        ("aarch64", "fp asimd", False),
    ],
)
def test_products_overflow_on_x86_without_vnni(tmp_path, monkeypatch, machine, flags, overflow):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\nbogomips : 1\n", encoding="utf-8")
    assert int8_products_overflow(cpuinfo) == overflow


def test_the_largest_int8_products_are_exact_on_this_processor(tmp_path):
    """Two of them fill 16 bits, in which processors without VNNI add them when in a hurry."""
    rows, inputs, outputs = 3, 64, 16
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weights", "middle"], ["out"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, inputs])],
        [helper.make_tensor_value_info("out", TensorProto.INT32, [rows, outputs])],
        [
            helper.make_tensor(
                "weights", TensorProto.INT8, [inputs, outputs], [127] * inputs * outputs
            ),
            helper.make_tensor("middle", TensorProto.UINT8, [], [128]),
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    path = tmp_path / "product.onnx"
    onnx.save(model, path)
    x = np.array([[255], [0], [128]], np.uint8).repeat(inputs, axis=1)
    (found,) = load_session(path, num_threads=1).run(None, {"x": x})
    expected = (x.astype(int) - 128).sum(axis=1) * 127
    np.testing.assert_array_equal(found, expected[:, None].repeat(outputs, axis=1))
