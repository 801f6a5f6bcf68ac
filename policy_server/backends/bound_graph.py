"""An ONNX graph that reads and writes preallocated arrays; the only file with ONNX Runtime."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

Arrays = Mapping[str, npt.NDArray[Any]]


class BoundGraph:
    """Runs on the first rows of arrays that are bound once, so that a call moves none of them.

    What is kept for later calls grows with the largest number of rows, not with the number of
    different (requests, network_rows): there is one binding for each number of requests, in which
    the inputs that have network rows are exchanged as needed.

    Args:
        path: of the ONNX file.
        num_threads: of one call.
        whole: inputs and outputs by name that a call has in full.
        by_requests: those of which a call has the first `requests` rows.
        by_rows: those of which a call has the first `network_rows` rows.
    """

    def __init__(
        self, path: Path, num_threads: int, whole: Arrays, by_requests: Arrays, by_rows: Arrays
    ) -> None:
        self._session = load_session(path, num_threads)
        self._outputs = {output.name for output in self._session.get_outputs()}
        self._whole = {name: _value(array) for name, array in whole.items()}
        self._by_requests = dict(by_requests)
        self._by_rows = dict(by_rows)
        self._bindings: dict[int, ort.IOBinding] = {}
        self._rows_bound: dict[int, int] = {}
        self._row_values: dict[int, dict[str, ort.OrtValue]] = {}

    def run(self, requests: int, network_rows: int) -> None:
        """One call: the outputs are in their arrays when it returns."""
        binding = self._bindings.get(requests)
        if binding is None:
            binding = self._bindings[requests] = self._session.io_binding()
            self._bind(binding, self._whole)
            self._bind(binding, _first(requests, self._by_requests))
        if self._rows_bound.get(requests) != network_rows:
            values = self._row_values.get(network_rows)
            if values is None:
                values = self._row_values[network_rows] = _first(network_rows, self._by_rows)
            self._bind(binding, values)
            self._rows_bound[requests] = network_rows
        self._session.run_with_iobinding(binding)

    def _bind(self, binding: ort.IOBinding, values: Mapping[str, ort.OrtValue]) -> None:
        for name, value in values.items():
            if name in self._outputs:
                binding.bind_ortvalue_output(name, value)
            else:
                binding.bind_ortvalue_input(name, value)


def load_session(path: Path, num_threads: int) -> ort.InferenceSession:
    """A graph as the server runs it.

    Args:
        path: of the ONNX file.
        num_threads: of one call.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # a spinning thread pool would take cores from the robot's own processes
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if int8_products_overflow():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def int8_products_overflow(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether ONNX Runtime's fast int8 products are wrong here.

    Without VNNI an x86 processor adds pairs of them as 16 bits, which do not hold them. There is an
    exact way, but where VNNI is, products of large networks take 1.5 times as long with it.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        flags = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return True
    return not re.search(r"^flags\b.*\b(avx512_vnni|avx_vnni)\b", flags, re.MULTILINE)


def _first(rows: int, arrays: Arrays) -> dict[str, ort.OrtValue]:
    return {name: _value(array[:rows]) for name, array in arrays.items()}


def _value(array: npt.NDArray[Any]) -> ort.OrtValue:
    """The array's own memory as a value of ONNX Runtime."""
    return ort.OrtValue.ortvalue_from_numpy(array)
