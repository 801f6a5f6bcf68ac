"""Importing the client must not need what a robot does not install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import importlib, sys

HEAVY = {"torch", "onnxruntime", "onnx", "mujoco", "metaworld", "matplotlib", "tqdm", "tyro",
         "safetensors", "tokenizers", "scipy", "gym_pusht", "gymnasium", "pymunk", "pygame", "cv2",
         "models", "policy_server", "benchmarks"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{name} is not on a robot")

sys.meta_path.insert(0, Blocker())
for module in sys.argv[1:]:
    importlib.import_module(module)
print(len(sys.argv) - 1)
"""


def run(modules: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_module_outside_sims_imports_on_a_robot() -> None:
    modules = [f"client.{path.stem}" for path in (ROOT / "client").glob("*.py")]
    assert "client.policy_client" in modules
    done = run(modules)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules)


def test_the_check_can_fail() -> None:
    done = run(["torch.nn"])
    assert "torch.nn is not on a robot" in done.stderr or "torch is not on a robot" in done.stderr
