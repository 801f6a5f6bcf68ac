"""Lists of phrasings, task → what people say: those that come with a robot, or from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

HELD_OUT = ("validation", "unseen")
"""Names of the lists that no policy is trained on: for choosing, and for reports only."""


def read_list(package: str, name: str, tasks: Sequence[str]) -> dict[str, list[str]]:
    """`phrasings_NAME.json` of a robot's package: task → phrasings, for every one of `tasks`.

    Raises:
        ValueError: the file is not of that form, or a task is missing, unknown or empty.
    """
    file = resources.files(package) / f"phrasings_{name}.json"
    return _check(json.loads(file.read_text("utf-8")), name, tasks)


def load_list(
    package: str, name_or_path: str, known: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Phrasings by name ("known", "validation", "unseen") or from a JSON file.

    Args:
        package: of the robot.
        name_or_path: a name above, or the path of a JSON object: task → list of phrasings.
        known: task → what the robot's policy is trained on; these tasks the other lists must have.

    Returns:
        Task → phrasings, for every task.

    Raises:
        ValueError: the file is not of that form, or a task is missing, unknown or empty.
        FileNotFoundError: no such file.
    """
    tasks = list(known)
    if name_or_path == "known":
        return {task: list(known[task]) for task in tasks}
    if name_or_path in HELD_OUT:
        return read_list(package, name_or_path, tasks)
    return _check(json.loads(Path(name_or_path).read_text("utf-8")), name_or_path, tasks)


def _check(phrasings: object, where: str, tasks: Sequence[str]) -> dict[str, list[str]]:
    if not isinstance(phrasings, dict) or set(phrasings) != set(tasks):
        found = sorted(phrasings) if isinstance(phrasings, dict) else type(phrasings).__name__
        msg = f"{where}: expected a JSON object with exactly the keys {list(tasks)}, got {found}"
        raise ValueError(msg)
    for task, texts in phrasings.items():
        usable = isinstance(texts, Sequence) and not isinstance(texts, str) and len(texts) > 0
        if not usable or not all(isinstance(text, str) and text.strip() for text in texts):
            msg = f"{where}: {task}: expected a non-empty list of non-empty strings, got {texts!r}"
            raise ValueError(msg)
    return {task: list(phrasings[task]) for task in tasks}
