"""What people say who want the T somewhere: training phrasings, and two held-out lists.

`known` phrasings are what the bundled policy is trained on: a small grammar, and sentences written
by hand (`phrasings_known.json`). The `validation` and `unseen` lists were written with other verbs
and in other forms: validation is for choosing, unseen for reports only.
"""

from __future__ import annotations

from itertools import product

from client.sims.phrasing_lists import load_list, read_list
from client.sims.pusht.spec import TASKS

_PACKAGE = "client.sims.pusht"
_OBJECTS = ("the T", "the block", "the T-shaped block", "the grey T")
# {o} is the object, {to} where it shall go, {at} where it shall be.
_MOVES = (
    "push {o} {to}",
    "move {o} {to}",
    "slide {o} {to}",
    "shove {o} {to}",
    "bring {o} {to}",
    "drive {o} {to}",
    "take {o} {to}",
    "nudge {o} over {to}",
)
_PUTS = (
    "put {o} {at}",
    "place {o} {at}",
    "park {o} {at}",
    "get {o} to lie {at}",
    "fit {o} onto the outline {at}",
    "line {o} up with the outline {at}",
)
_TO = {
    "middle": (
        "to the middle",
        "to the centre",
        "into the center of the board",
        "to the middle of the table",
        "onto the central outline",
    ),
    "lower_right": (
        "to the lower right",
        "to the bottom right",
        "into the bottom right of the board",
        "to the lower right of the table",
        "onto the lower right outline",
    ),
}
_AT = {
    "middle": (
        "in the middle",
        "at the centre",
        "in the center of the board",
        "in the middle of the table",
    ),
    "lower_right": (
        "on the lower right",
        "at the bottom right",
        "in the bottom right of the board",
        "on the lower right of the table",
    ),
}
_FRAMES = (
    "{v}",
    "please {v}",
    "{v}, please",
    "can you {v}?",
    "could you {v} for me?",
    "I want you to {v}",
    "robot, {v}",
    "now {v}",
    "go ahead and {v}",
)


def known() -> dict[str, list[str]]:
    """Task → what the policy is trained on: the grammar, and sentences written by hand.

    In the grammar every verb meets every place once, objects and frames in turn.
    """
    written = read_list(_PACKAGE, "known", TASKS)
    phrasings: dict[str, list[str]] = {}
    for task in TASKS:
        verbs = [verb.replace("{to}", to) for verb, to in product(_MOVES, _TO[task])]
        verbs += [verb.replace("{at}", at) for verb, at in product(_PUTS, _AT[task])]
        framed = [
            _FRAMES[i % len(_FRAMES)].format(v=verb.format(o=_OBJECTS[i % len(_OBJECTS)]))
            for i, verb in enumerate(verbs)
        ]
        phrasings[task] = list(dict.fromkeys(framed + written[task]))
    return phrasings


def load(name_or_path: str) -> dict[str, list[str]]:
    """Phrasings by name or from a JSON file, as `client.sims.phrasing_lists.load_list` has it."""
    return load_list(_PACKAGE, name_or_path, known())
