"""A checkpoint: a folder with `manifest.json`, `model.safetensors` and, optionally, ONNX exports.

JSON and safetensors only: loading one runs no code from it. Files are checked against the hashes in
the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from client.specs import PolicySpec
from models.grids import GridName
from models.guidance import EVERYWHERE, Interval, check_interval
from models.networks.config import NetworkConfig
from models.networks.kinds import config_from_json, config_to_json
from models.policy import DiffusionConfig, DiffusionPolicy
from models.samplers import SamplerName, takes_eta
from models.vision import VisionConfig, vision_from_json, vision_to_json

FORMAT = 1
WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
ENCODER_ONNX = "encoder.onnx"
INT8_ONNX = "model_int8.onnx"
PAIR = (ONNX, ENCODER_ONNX)
"""The guided step and the encoder: a checkpoint has both or neither."""
EXPORTS = (*PAIR, INT8_ONNX)
"""The last is the step with int8 weights, which may be beside the pair."""
MANIFEST = "manifest.json"
PRETRAINED = Path(__file__).parent / "pretrained"
"""Checkpoints that ship with the package, by task name."""


SERVED_GRIDS: tuple[GridName, ...] = ("trailing", "linspace", "logsnr")
"""Grids whose first timestep does not depend on the step count."""
SERVED_SAMPLERS: tuple[SamplerName, ...] = ("ddim", "dpmpp_2m")
"""DDPM with the posterior variance is ddim with eta = 1; the other one is for comparisons."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request gets when it does not say.

    Attributes:
        guidance_scale: w of Ho & Salimans.
        eta: 0 deterministic .. 1 ancestral.
        grid: spacing of the timesteps; its first timestep must not depend on the step count.
        sampler: name of the update rule.
        guidance_interval: noise levels at which the guidance scale acts, a request's own one, too.
    """

    guidance_scale: float = 0.0
    eta: float = 0.0
    grid: GridName = "trailing"
    sampler: SamplerName = "ddim"
    guidance_interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        """Refuse what the server cannot do, or should not."""
        if self.grid not in SERVED_GRIDS:
            msg = (
                f"defaults.grid: expected one of {', '.join(SERVED_GRIDS)} (a served grid starts "
                f"at the same timestep for any step count), got {self.grid!r}"
            )
            raise ValueError(msg)
        if self.sampler not in SERVED_SAMPLERS:
            expected = " or ".join(SERVED_SAMPLERS)
            msg = f"defaults.sampler: expected {expected}, got {self.sampler!r}"
            raise ValueError(msg)
        if (self.sampler, self.grid) == ("dpmpp_2m", "linspace"):
            raise ValueError(
                "defaults: dpmpp_2m extrapolates, which the last steps of linspace are too long "
                "for; choose logsnr or trailing"
            )
        if not 0 <= self.eta <= 1 or (self.eta and not takes_eta(self.sampler)):
            msg = f"defaults.eta: expected 0..1 with ddim, 0 with {self.sampler}, got {self.eta}"
            raise ValueError(msg)
        if not math.isfinite(self.guidance_scale):
            msg = f"defaults.guidance_scale: expected a finite number, got {self.guidance_scale}"
            raise ValueError(msg)
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))  # JSON: a list
        check_interval("defaults.guidance_interval", self.guidance_interval)


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint that is not a weight.

    Attributes:
        model_id: name of this very checkpoint, echoed in every reply.
        spec: what it takes and gives.
        network: kind and sizes of its network.
        diffusion: the process it was trained on.
        defaults: what a request gets when it does not say.
        min_steps: fewest denoising steps that give a usable chunk.
        max_useful_steps: more steps than this do not raise success.
        success_by_steps: rows of the measurement that the two numbers come from.
        instruction_encoder: package and sha256 of its weights.
        guided_input: what the guidance is about; always the instruction.
        training: seeds, data and figures of the training run.
        command: the command that made it.
        files: sha256 of every other file of the checkpoint.
        vision: sizes of its camera encoders; absent from the file where there are no cameras.
    """

    model_id: str
    spec: PolicySpec
    network: NetworkConfig
    diffusion: DiffusionConfig
    defaults: SamplingDefaults
    min_steps: int
    max_useful_steps: int
    instruction_encoder: Mapping[str, str]
    command: str
    success_by_steps: tuple[Mapping[str, Any], ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    guided_input: str = "instruction"
    files: Mapping[str, str] = field(default_factory=dict)
    vision: VisionConfig | None = None

    def __post_init__(self) -> None:
        """Check what the planner and the server rely on."""
        if self.guided_input != "instruction":
            msg = f"manifest: guided_input: expected 'instruction', got {self.guided_input!r}"
            raise ValueError(msg)
        if set(self.instruction_encoder) != {"package", "sha256"}:
            msg = (
                "manifest: instruction_encoder: expected package and sha256, "
                f"got {self.instruction_encoder}"
            )
            raise ValueError(msg)
        if not 1 <= self.min_steps <= self.max_useful_steps <= self.diffusion.num_timesteps:
            msg = (
                "manifest: expected 1 <= min_steps <= max_useful_steps <= "
                f"{self.diffusion.num_timesteps}, got {self.min_steps}, {self.max_useful_steps}"
            )
            raise ValueError(msg)

    def to_json(self) -> str:
        """Pretty-printed; inverse of `from_json`."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        fields["spec"] = self.spec.to_dict()
        fields["network"] = config_to_json(self.network)
        if self.vision is None:
            del fields["vision"]
        else:
            fields["vision"] = vision_to_json(self.vision)
        if self.defaults.guidance_interval == EVERYWHERE:  # as before there was one
            del fields["defaults"]["guidance_interval"]
        return json.dumps({"format": FORMAT, **fields}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse a manifest.

        Raises:
            ValueError, TypeError, KeyError: not a manifest of this format.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            msg = f"expected a JSON object, got {type(fields).__name__}"
            raise ValueError(msg)
        found = fields.pop("format", None)
        if found != FORMAT:
            msg = f"format: expected {FORMAT}, got {found!r}"
            raise ValueError(msg)
        fields["spec"] = PolicySpec.from_dict(fields["spec"])
        fields["network"] = config_from_json(fields["network"])
        fields["diffusion"] = DiffusionConfig(**fields["diffusion"])
        fields["defaults"] = SamplingDefaults(**fields["defaults"])
        fields["success_by_steps"] = tuple(fields["success_by_steps"])
        fields["vision"] = vision_from_json(fields.get("vision"))
        return cls(**fields)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest` with the hashes of the files that lie in `folder` now; return it so."""
    exported = EXPORTS if all((folder / name).exists() for name in PAIR) else ()
    names = [name for name in (WEIGHTS, *exported) if (folder / name).exists()]
    return _write(folder, manifest, {name: file_sha256(folder / name) for name in names})


def _write(folder: Path, manifest: Manifest, files: Mapping[str, str]) -> Manifest:
    """The file is replaced in one piece: an interrupted write leaves the old one."""
    manifest = dataclasses.replace(manifest, files=files)
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(manifest.to_json(), "utf-8")
    partial.replace(folder / MANIFEST)
    return manifest


def save(folder: Path, manifest: Manifest, policy: DiffusionPolicy) -> Manifest:
    """Write weights and manifest into `folder`, removing older ONNX exports."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXPORTS:
        (folder / name).unlink(missing_ok=True)
    partial = folder / (WEIGHTS + ".partial")
    save_file(policy.state_dict(), partial)
    partial.chmod(0o644)  # safetensors leaves it to its owner alone
    partial.replace(folder / WEIGHTS)
    return write_manifest(folder, manifest)


def discard_exports(folder: Path) -> None:
    """Remove the ONNX exports, if there are any, and take them off the manifest.

    Raises:
        CheckpointError: there is no readable manifest.
    """
    manifest = read_manifest(folder)
    _write(folder, manifest, {k: v for k, v in manifest.files.items() if k not in EXPORTS})
    for name in EXPORTS:
        (folder / name).unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, without touching the weights.

    Raises:
        CheckpointError: missing or unreadable.
    """
    path = folder / MANIFEST
    try:
        return Manifest.from_json(path.read_text("utf-8"))
    except FileNotFoundError:
        msg = f"{path}: not found; expected a checkpoint folder (made by: python -m models train)"
        raise CheckpointError(msg) from None
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{path}: not a usable manifest: {error}"
        raise CheckpointError(msg) from error


def load(folder: Path) -> tuple[Manifest, DiffusionPolicy]:
    """A checkpoint, verified, with the policy in evaluation mode.

    Raises:
        CheckpointError: a file is missing, altered or does not fit the manifest.
    """
    manifest = read_manifest(folder)
    if WEIGHTS not in manifest.files:
        msg = f"{folder / MANIFEST}: files: expected a hash of {WEIGHTS}"
        raise CheckpointError(msg)
    if len(manifest.files.keys() & set(PAIR)) == 1:
        msg = (
            f"{folder / MANIFEST}: files: expected both {' and '.join(PAIR)} or neither; "
            f"make them again: python -m models export {folder}"
        )
        raise CheckpointError(msg)
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            msg = f"{path}: named in the manifest but not found"
            raise CheckpointError(msg)
        found = file_sha256(path)
        if found != expected:
            msg = f"{path}: altered or truncated: expected sha256 {expected}, got {found}"
            raise CheckpointError(msg)
    try:
        policy = DiffusionPolicy(
            manifest.spec, manifest.network, manifest.diffusion, manifest.vision
        )
    except ValueError as error:
        msg = f"{folder / MANIFEST}: {error}"
        raise CheckpointError(msg) from error
    try:
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        msg = f"{folder / WEIGHTS}: does not fit the manifest's network: {error}"
        raise CheckpointError(msg) from error
    return manifest, policy.eval()
