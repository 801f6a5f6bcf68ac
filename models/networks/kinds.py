"""Every kind of network that a checkpoint can hold, by the name in its manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from models.networks.config import NetworkConfig
from models.networks.film_mlp import FilmMlpConfig
from models.networks.transformer import TransformerConfig
from models.networks.unet1d import Unet1dConfig

KINDS: Mapping[str, type[NetworkConfig]] = {
    config.kind: config
    for config in (
        FilmMlpConfig,
        Unet1dConfig,
        TransformerConfig,
    )
}


def config_class(kind: str) -> type[NetworkConfig]:
    """The configuration of this kind of network.

    Raises:
        ValueError: unknown name.
    """
    if kind not in KINDS:
        msg = f"network.kind: expected one of {', '.join(KINDS)}, got {kind!r}"
        raise ValueError(msg)
    return KINDS[kind]


def config_to_json(config: NetworkConfig) -> dict[str, Any]:
    """As JSON types, the kind first; what it has none of is left out."""
    sizes = {k: value for k, value in dataclasses.asdict(config).items() if value is not None}
    return {"kind": config.kind, **sizes}


def config_from_json(fields: Mapping[str, Any]) -> NetworkConfig:
    """Inverse of `config_to_json`.

    Raises:
        ValueError, TypeError: unknown kind, unknown or missing size, or one out of its range.
    """
    sizes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    # manifests from before there were several kinds name none
    return config_class(sizes.pop("kind", FilmMlpConfig.kind))(**sizes)
