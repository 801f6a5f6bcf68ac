"""Shared: a checkpoint and a real server process."""

import pytest

from benchmarks.server_process import running_server
from tests.faults.driving import SPEC
from tests.policies import make_policy, save_checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, make_policy(spec=SPEC))
    return folder


@pytest.fixture(scope="session")
def server(folder):
    with running_server(folder, "--backend", "torch") as server:
        yield server
