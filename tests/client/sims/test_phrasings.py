"""Phrasings: how many there are, and files of one's own; more is in tests/contracts."""

import json

import pytest

from client.sims.desk import phrasings as desk_phrasings
from client.sims.desk.spec import TASKS as DESK_TASKS
from client.sims.pusht import phrasings as pusht_phrasings
from client.sims.pusht.spec import TASKS as PUSHT_TASKS

ROBOTS = {"desk": (desk_phrasings, DESK_TASKS), "pusht": (pusht_phrasings, PUSHT_TASKS)}


@pytest.fixture(params=ROBOTS)
def robot(request):
    return ROBOTS[request.param]


@pytest.mark.parametrize("name", ["known", "validation", "unseen"])
def test_there_are_enough_to_choose_from_and_they_can_be_asked(robot, name):
    phrasings, tasks = robot
    texts = phrasings.load(name)
    assert min(map(len, texts.values())) >= 15
    assert all(len(text.encode()) <= 1000 for task in tasks for text in texts[task])


def test_what_is_known_is_a_grammar_and_sentences_written_by_hand(robot):
    phrasings, tasks = robot
    known = phrasings.known()
    assert known == phrasings.load("known")
    for task in tasks:
        assert len(set(known[task])) >= 60
        assert not [text for text in known[task] if "{" in text]


def test_a_file_of_one_s_own(robot, tmp_path):
    phrasings, tasks = robot
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({task: [task] for task in reversed(tasks)}))
    assert phrasings.load(str(path)) == {task: [task] for task in tasks}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"drawer_open": ["x"]},
        {task: [] for task in DESK_TASKS},
        dict.fromkeys(DESK_TASKS, "open"),
        {task: [" "] for task in DESK_TASKS},
        {**{task: ["x"] for task in DESK_TASKS}, "dance": ["x"]},
    ],
)
def test_a_malformed_file_is_explained(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bad\.json: .*expected"):
        desk_phrasings.load(str(path))
