"""python -m client against a real ROUTER socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from client.__main__ import main
from client.messages import ActRequest

if TYPE_CHECKING:
    from conftest import Answer, Server

PATIENT = ["--timeout-ms", "10000"]


def test_ping_and_metadata(
    serve: Callable[..., Server], answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(answer)
    assert main(["ping", server.address, *PATIENT]) == 0
    assert json.loads(capsys.readouterr().out)["round_trip_s"] > 0
    assert main(["metadata", server.address, *PATIENT]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["observation"]["state"]["shape"] == [3, 1]


def test_act(
    serve: Callable[..., Server],
    answer: Answer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    server = serve(answer)
    path = tmp_path / "observation.npz"
    np.savez(path, state=np.array([[0], [1], [2]], np.float32))
    options = ["--budget-ms", "9000", "--num-steps", "2", "--seed", "4", "--best-effort"]
    command = ["act", server.address, "--instruction", "go", "--observation", str(path)]
    assert main([*command, *options, *PATIENT]) == 0
    chunk = json.loads(capsys.readouterr().out)
    assert chunk["actions"][9][0] == 11.0
    assert not chunk["late"]
    request = server.received[-1]
    assert isinstance(request, ActRequest)
    assert 8 < request.budget_s < 9
    assert (request.num_steps, request.seed, request.best_effort) == (2, 4, True)


def test_errors_are_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "not.npz").write_bytes(b"junk")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04junk")
    np.save(tmp_path / "array.npy", np.zeros(3))
    nobody = "tcp://127.0.0.1:1"
    for command, says in (
        (["ping", nobody, "--timeout-ms", "20"], "ConnectionLostError: no connection to tcp"),
        (["ping", "nowhere"], "InvalidRequestError: address"),
        (["ping", nobody, "--timeout-ms", "0"], "InvalidRequestError: timeout_s"),
        *(
            (
                ["act", nobody, "--instruction", "go", "--observation", str(tmp_path / name)],
                "InvalidRequestError: --observation",
            )
            for name in ("not.npz", "cut.npz", "array.npy", "missing.npz")
        ),
    ):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert error.startswith(says)
        assert error.count("\n") == 1
