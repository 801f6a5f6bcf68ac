"""The denoising step run by ONNX Runtime on bound, preallocated buffers; torch encodes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime as ort

from models.export import export_onnx
from models.policy import DiffusionPolicy
from policy_server.backends.protocol import BackendSettings
from policy_server.backends.torch_backend import TorchBackend


class OnnxBackend(TorchBackend):
    """See `protocol.Backend`."""

    name = "onnx"

    def __init__(
        self, policy: DiffusionPolicy, settings: BackendSettings, model: Path | None
    ) -> None:
        """Load `model`, or export the policy first (some seconds) when there is none."""
        super().__init__(policy, settings)
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.num_threads
        options.inter_op_num_threads = 1
        # a spinning thread pool would take cores from the robot's own processes
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            if model is None:
                model = Path(folder) / "model.onnx"
                export_onnx(policy, model)
            self._session = ort.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}

    def _binding(self, requests: int, network_rows: int) -> ort.IOBinding:
        """Inputs and outputs bound to the buffers' memory, once for each pair of row counts."""
        binding = self._session.io_binding()
        for name, array in self.buffers.inputs(requests, network_rows).items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in self.buffers.outputs(requests).items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def step(self, requests: int, network_rows: int) -> None:
        """See `protocol.Backend.step`."""
        key = (requests, network_rows)
        if key not in self._bindings:
            self._bindings[key] = self._binding(requests, network_rows)
        self._session.run_with_iobinding(self._bindings[key])
