"""Phrasings: every task has its own, and the held-out lists are held out."""

import json

import pytest

from client.sims.desk.phrasings import known, load
from client.sims.desk.spec import TASKS


def plain(text):
    return "".join(c for c in text.lower() if c.isalnum() or c == " ").strip()


@pytest.mark.parametrize("name", ["known", "validation", "unseen"])
def test_every_task_has_its_own_phrasings(name):
    phrasings = load(name)
    assert tuple(phrasings) == TASKS
    owners = {}
    for task in TASKS:
        for text in phrasings[task]:
            assert owners.setdefault(plain(text), task) == task
    assert min(map(len, phrasings.values())) >= 18
    assert all(len(text.encode()) <= 1000 for task in TASKS for text in phrasings[task])


@pytest.mark.parametrize(
    ("one", "two"), [("known", "validation"), ("known", "unseen"), ("validation", "unseen")]
)
def test_the_lists_share_no_sentence(one, two):
    first, second = (
        {plain(text) for texts in load(name).values() for text in texts} for name in (one, two)
    )
    assert not first & second


def test_a_file_of_one_s_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({task: [task] for task in reversed(TASKS)}))
    assert load(str(path)) == {task: [task] for task in TASKS}
    assert len(known()["drawer_open"]) > 100


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"drawer_open": ["x"]},
        {task: [] for task in TASKS},
        dict.fromkeys(TASKS, "open"),
        {task: [" "] for task in TASKS},
        {**{task: ["x"] for task in TASKS}, "dance": ["x"]},
    ],
)
def test_a_malformed_file_is_explained(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bad\.json: .*expected"):
        load(str(path))
