"""Priorities are the operating system's: what it says they are, and that a refusal is survived."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from policy_server.priority import set_nice
from policy_server.server import ServerConfig

AUTOGROUP = Path("/proc/self/autogroup")
GROUPED = AUTOGROUP.exists() and AUTOGROUP.read_text("ascii").strip() != ""
"""Empty where control groups come first, so that no session has a group of its own."""
READ = "import os; from policy_server.priority import set_nice; set_nice(5); print(os.nice(0))"


def test_threads_that_are_started_later_have_it_too():
    seen = []

    def other():
        set_nice(7)
        inner = threading.Thread(target=lambda: seen.append(os.nice(0)))
        inner.start()
        inner.join()

    before = os.nice(0)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [7]
    assert os.nice(0) == before


def test_it_holds_for_a_program_that_asks_first():
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5"


@pytest.mark.skipif(not GROUPED, reason="sessions do not count for this scheduler")
@pytest.mark.parametrize("own_session", [True, False])
def test_a_session_of_its_own_gets_it_too_and_nobody_elses_does(own_session):
    before = AUTOGROUP.read_text("ascii").split()[-1]
    read = f"{READ}; print(open({str(AUTOGROUP)!r}).read())"
    done = subprocess.run(
        [sys.executable, "-c", read],
        start_new_session=own_session,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == ("5" if own_session else before)
    assert AUTOGROUP.read_text("ascii").split()[-1] == before


def test_where_it_is_not_permitted_the_log_says_what_to_do(monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    with caplog.at_level(logging.WARNING):
        set_nice(-10)
    assert "LimitNICE=-10" in caplog.text
    assert "ulimit -e 30" in caplog.text


@pytest.mark.parametrize("nice", [-21, 20])
def test_the_server_refuses_what_is_no_nice_value(nice):
    with pytest.raises(ValueError, match="nice"):
        ServerConfig(nice=nice)
