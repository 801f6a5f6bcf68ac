"""What people say to the desk robot: training phrasings, and two held-out lists.

`known` phrasings are what the bundled policy is trained on: a small grammar, and sentences written
by hand (`phrasings_known.json`). From both those were left out that a linear readout of the
sentence embedding cannot safely tell from the opposite task's even when fitted to them: negations
("the lever shouldn't be up") and some that name both directions ("from right to left").

The `validation` and `unseen` lists were written separately, without sight of any of this, and
nothing was left out of them but sentences that are in `known`: validation is for choosing, unseen
for reports only.
"""

from __future__ import annotations

from itertools import product

from client.sims.desk.spec import TASKS
from client.sims.phrasing_lists import load_list, read_list

_PACKAGE = "client.sims.desk"

_OBJECTS: dict[str, tuple[str, ...]] = {
    "drawer": (
        "the drawer",
        "that drawer",
        "the desk drawer",
        "the sliding drawer",
        "the drawer box",
    ),
    "lever": ("the lever", "the handle", "that lever", "the lever arm", "the big handle"),
    "faucet": (
        "the faucet",
        "the tap",
        "the spout",
        "the water tap",
        "the faucet handle",
        "the tap's knob",
        "the spigot",
    ),
}

# {o} is the object; where a sentence does not suit the frames below it stands in _SENTENCES.
_VERBS: dict[str, tuple[str, ...]] = {
    "drawer_open": (
        "open {o}",
        "open {o} up",
        "open {o} wide",
        "pull {o} open",
        "pull {o} out",
        "pull {o} towards you",
        "pull on the handle of {o} until it is out",
        "slide {o} out",
        "slide {o} open",
        "slide {o} towards the front",
        "draw {o} out",
        "draw {o} outwards",
        "tug {o} open",
        "yank {o} open",
        "bring {o} out",
        "extend {o}",
        "get {o} open",
        "hook {o} and drag it out",
        "move {o} outwards",
        "move {o} to the open position",
        "ease {o} out",
        "give me access to {o}",
        "take hold of {o} and pull",
    ),
    "drawer_close": (
        "close {o}",
        "close {o} up",
        "close {o} fully",
        "shut {o}",
        "push {o} shut",
        "push {o} in",
        "push {o} back in",
        "push {o} away from you",
        "push against the front of {o} until it is in",
        "slide {o} in",
        "slide {o} closed",
        "slide {o} towards the back",
        "put {o} back in",
        "shove {o} in",
        "send {o} back inside",
        "retract {o}",
        "get {o} shut",
        "move {o} inwards",
        "move {o} to the closed position",
        "press {o} in",
        "tuck {o} away",
        "return {o} to its place in the cabinet",
        "nudge {o} home",
    ),
    "lever_down": (
        "push {o} down",
        "press {o} down",
        "press down on {o}",
        "push down on {o}",
        "lower {o}",
        "pull {o} down",
        "bring {o} down",
        "move {o} down",
        "move {o} downwards",
        "force {o} down",
        "depress {o}",
        "drop {o} to the bottom",
        "put {o} in the down position",
        "set {o} to its lowest position",
        "lean on {o}",
        "get {o} all the way down",
        "flip {o} down",
        "swing {o} down",
        "throw {o} downward",
        "squash {o} down from above",
        "take {o} to its bottom stop",
    ),
    "lever_up": (
        "pull {o} up",
        "push {o} up",
        "lift {o}",
        "lift {o} up",
        "raise {o}",
        "bring {o} up",
        "move {o} up",
        "move {o} upwards",
        "force {o} up",
        "hoist {o}",
        "elevate {o}",
        "put {o} in the up position",
        "set {o} to its highest position",
        "get under {o} and lift",
        "get {o} all the way up",
        "flip {o} up",
        "swing {o} up",
        "throw {o} upward",
        "push {o} up from below",
        "take {o} to its top stop",
        "heave {o} towards the ceiling",
    ),
    "faucet_left": (
        "turn {o} left",
        "turn {o} to the left",
        "rotate {o} left",
        "rotate {o} to the left",
        "twist {o} left",
        "swing {o} left",
        "swing {o} over to the left",
        "move {o} left",
        "move {o} to the left side",
        "push {o} left",
        "push {o} towards the left",
        "swivel {o} left",
        "spin {o} to the left",
        "pivot {o} leftwards",
        "point {o} left",
        "make {o} point to the left",
        "aim {o} at the left side",
        "bring {o} round to the left",
        "slew {o} left",
        "sweep {o} leftward",
        "get {o} over on the left",
        "put {o} on the left-hand side",
    ),
    "faucet_right": (
        "turn {o} right",
        "turn {o} to the right",
        "rotate {o} right",
        "rotate {o} to the right",
        "twist {o} right",
        "swing {o} right",
        "swing {o} over to the right",
        "move {o} right",
        "move {o} to the right side",
        "push {o} right",
        "push {o} towards the right",
        "swivel {o} right",
        "spin {o} to the right",
        "pivot {o} rightwards",
        "point {o} right",
        "make {o} point to the right",
        "aim {o} at the right side",
        "bring {o} round to the right",
        "slew {o} right",
        "sweep {o} rightward",
        "get {o} over on the right",
        "put {o} on the right-hand side",
    ),
}

_FRAMES = (
    "{v}",
    "{v}",
    "please {v}",
    "{v}, please",
    "can you {v}?",
    "could you {v} for me?",
    "I want you to {v}",
    "robot, {v}",
    "now {v}",
    "go ahead and {v}",
    "{v} all the way",
    "you need to {v}",
)

_SENTENCES: dict[str, tuple[str, ...]] = {
    "drawer_open": (
        "{o} should be open",
        "I need something out of {o}",
        "let me see what is inside {o}",
        "{o} needs to come out",
        "I want to put something into {o}",
        "{o} is shut, I'd like it open",
        "leave {o} open for me",
    ),
    "drawer_close": (
        "{o} should be closed",
        "I am done with {o}",
        "{o} is sticking out, get it back in",
        "{o} needs to go in",
        "nobody needs {o} any more, shut it",
        "{o} is open, I'd like it shut",
        "don't leave {o} hanging out",
    ),
    "lever_down": (
        "{o} should be down",
        "{o} needs to be lowered",
        "I'd like {o} at the bottom",
        "{o} is too high, bring it down",
        "down with {o}",
        "make {o} go down",
        "I want {o} as low as it goes",
    ),
    "lever_up": (
        "{o} should be up",
        "{o} needs to be raised",
        "I'd like {o} at the top",
        "{o} is too low, bring it up",
        "up with {o}",
        "make {o} go up",
        "I want {o} as high as it goes",
    ),
    "faucet_left": (
        "{o} should be on the left",
        "{o} should point left",
        "{o} needs to go left",
        "I want {o} turned to the left",
        "I want the water to come out on the left of {o}",
        "left with {o}",
        "the sink on the left needs {o}",
    ),
    "faucet_right": (
        "{o} should be on the right",
        "{o} should point right",
        "{o} needs to go right",
        "I want {o} turned to the right",
        "I want the water to come out on the right of {o}",
        "right with {o}",
        "the sink on the right needs {o}",
    ),
}


def known() -> dict[str, list[str]]:
    """Task → what the policy is trained on: the grammar, and sentences written by hand.

    In the grammar every verb meets every object once, plainly or in a frame.
    """
    written = read_list(_PACKAGE, "known", TASKS)
    phrasings: dict[str, list[str]] = {}
    for task in TASKS:
        objects = _OBJECTS[task.split("_")[0]]
        verbs = [verb.format(o=o) for verb, o in product(_VERBS[task], objects)]
        framed = [_FRAMES[i % len(_FRAMES)].format(v=verb) for i, verb in enumerate(verbs)]
        whole = [sentence.format(o=o) for sentence, o in product(_SENTENCES[task], objects)]
        phrasings[task] = framed + whole + written[task]
    return phrasings


def load(name_or_path: str) -> dict[str, list[str]]:
    """Phrasings by name or from a JSON file, as `client.sims.phrasing_lists.load_list` has it."""
    return load_list(_PACKAGE, name_or_path, known())
