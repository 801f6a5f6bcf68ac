"""A network's configuration from words, as a command line gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from client.specs import PolicySpec
from models.networks.config import NetworkConfig
from models.networks.kinds import config_class
from models.vision import VisionConfig


def sized_config(
    kind: str,
    sizes: Sequence[str],
    spec: PolicySpec,
    instruction_dim: int,
    vision: VisionConfig | None = None,
) -> NetworkConfig:
    """The default sizes of a kind of network, but for those that are given.

    Args:
        kind: name of the kind of network.
        sizes: `name=number`, or `name=number,number,…` where there are several.
        spec: gives the shapes that it must fit.
        instruction_dim: numbers in a projected instruction.
        vision: what frames become, if there are cameras.

    Raises:
        ValueError: unknown kind, unknown size, no number, or one out of its range.
    """
    config = config_class(kind).for_spec(spec, instruction_dim, vision)
    shapes = {field.name for field in dataclasses.fields(NetworkConfig)}
    defaults = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in shapes
    }
    given: dict[str, int | tuple[int, ...]] = {}
    for word in sizes:
        name, _, text = word.partition("=")
        if name not in defaults or name in given:
            expected = ", ".join(defaults)
            msg = f"sizes: expected each of {expected} once at most ({kind}), got {word!r}"
            raise ValueError(msg)
        try:
            numbers = tuple(int(number) for number in text.split(","))
        except ValueError:
            msg = f"sizes: expected {name}=NUMBER, or several with commas, got {word!r}"
            raise ValueError(msg) from None
        if isinstance(defaults[name], tuple):
            given[name] = numbers
        elif len(numbers) == 1:
            given[name] = numbers[0]
        else:
            msg = f"sizes: expected one number, got {word!r}"
            raise ValueError(msg)
    return dataclasses.replace(config, **given)  # type: ignore[arg-type]  # checks them itself
