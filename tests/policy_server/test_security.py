"""Keys: a real server that asks for them, clients that have them and clients that have not."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zmq

from benchmarks.faulty_proxy import FaultyProxy
from benchmarks.server_process import running_server
from client import ConnectionLostError, InvalidRequestError, PolicyClient
from client.messages import PingRequest
from client.wire import encode
from policy_server.security import KeygenConfig, ServerKeys, check_exposure, is_local, keygen
from policy_server.server import ServerConfig, serve
from tests.policies import make_policy, save_checkpoint

INSTRUCTION = "open the drawer, please"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    command = [sys.executable, "-m", "policy_server", "keygen", "lab", "arm", "cart"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, cwd=folder, env=env, check=True)  # as the README has it
    keygen(KeygenConfig(folder / "elsewhere", ("stranger",)))
    return folder


@pytest.fixture(scope="module")
def server(keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, make_policy())
    with running_server(folder, "--backend", "torch", "--keys", str(keys / "lab")) as server:
        yield server


def act(address, **options):
    observation = {"state": np.zeros((2, 3), np.float32)}
    with PolicyClient(address, **options) as policy:
        return policy.act(observation, INSTRUCTION, budget_s=2.0, timeout_s=5.0)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_secrets_are_for_their_owner_only(keys):
    secrets = sorted(keys.rglob("*.key_secret"))
    assert [str(s.relative_to(keys / "lab")) for s in secrets if "lab" in s.parts] == [
        "arm/client.key_secret",
        "cart/client.key_secret",
        "server.key_secret",
    ]
    assert all(stat.S_IMODE(secret.stat().st_mode) == 0o600 for secret in secrets)


def test_another_client_is_added_and_nothing_else_changes(tmp_path):
    keygen(KeygenConfig(tmp_path, ("first",)))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    keygen(KeygenConfig(tmp_path, ("second",)))
    assert {p: p.read_bytes() for p in before} == before
    assert sorted(p.stem for p in (tmp_path / "clients").iterdir()) == ["first", "second"]
    with pytest.raises(ValueError, match="'first' has a key already"):
        KeygenConfig(tmp_path, ("first",))


@pytest.mark.parametrize("name", ["", "../up", "a/b", "clients", "."])
def test_a_name_is_a_plain_one(tmp_path, name):
    with pytest.raises(ValueError, match="clients"):
        KeygenConfig(tmp_path, (name,))


def test_a_secret_that_others_can_read_is_refused_on_both_sides(tmp_path):
    keygen(KeygenConfig(tmp_path, ("arm",)))
    (tmp_path / "server.key_secret").chmod(0o640)
    (tmp_path / "arm/client.key_secret").chmod(0o604)
    with pytest.raises(InvalidRequestError, match="chmod 600"):
        ServerKeys.load(tmp_path)
    with pytest.raises(InvalidRequestError, match="chmod 600"):
        PolicyClient("tcp://127.0.0.1:5555", keys=tmp_path / "arm")


def test_what_is_missing_or_no_key_is_named(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"client\.key_secret.*keygen"):
        PolicyClient("tcp://127.0.0.1:5555", keys=tmp_path)
    with pytest.raises(ValueError, match="no client's key"):
        ServerKeys.load(tmp_path)
    keygen(KeygenConfig(tmp_path, ("arm",)))
    (tmp_path / "clients/arm.key").write_text("not a key")
    with pytest.raises(InvalidRequestError, match=r"arm\.key"):
        ServerKeys.load(tmp_path)


def test_a_secret_is_never_shown(keys):
    loaded = ServerKeys.load(keys / "lab")
    assert loaded.own.secret.decode() not in repr(loaded)


# ── connections ──────────────────────────────────────────────────────────────────────────────────


def test_clients_on_the_list_are_served(server, keys):
    for name in ("arm", "cart"):
        assert act(server.address, keys=keys / "lab" / name).model_id == "tiny"


def stranger(keys, tmp_path):
    """A key that is not on the list, by somebody who knows the server's."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    for file in (keys / "elsewhere/stranger/client.key_secret", keys / "lab/arm/server.key"):
        copy = folder / file.name
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o600)
    return folder


@pytest.mark.parametrize("who", ["nobody", "not listed", "other server"])
def test_without_the_right_key_there_is_not_even_a_pong(server, keys, tmp_path, who):
    own = {
        "nobody": None,
        "not listed": stranger(keys, tmp_path),
        "other server": keys / "elsewhere/stranger",
    }[who]
    with PolicyClient(server.address, keys=own) as policy:
        for ask in (policy.ping, policy.metadata):
            with pytest.raises(ConnectionLostError):
                ask(timeout_s=0.5)
        # and whoever is on the list does not notice
        assert act(server.address, keys=keys / "lab/arm").deadline_met


def test_no_byte_of_service_goes_to_one_without_a_key(server):
    with (
        FaultyProxy(server.address, record=True) as recorder,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        dealer.linger = 0
        dealer.connect(recorder.address)
        dealer.send_multipart(encode(PingRequest(1)))
        assert not dealer.poll(500)
    assert b"tiny" not in recorder.heard
    assert len(recorder.heard) < 500  # greetings only


def test_a_recorded_session_shows_no_plain_text(server, keys):
    with FaultyProxy(server.address, record=True) as recorder:
        chunk = act(recorder.address, keys=keys / "lab/arm", session_id="session-of-the-arm")
    assert len(recorder.heard) > 1000
    for secret in (INSTRUCTION, "session-of-the-arm", "observation", "tiny", "actions"):
        assert secret.encode() not in recorder.heard
    assert chunk.actions.tobytes() not in recorder.heard


def test_without_keys_the_same_recorder_reads_everything(tmp_path):
    save_checkpoint(tmp_path, make_policy())
    with (
        running_server(tmp_path, "--backend", "torch") as server,
        FaultyProxy(server.address, record=True) as recorder,
    ):
        act(recorder.address)
    assert INSTRUCTION.encode() in recorder.heard


# ── exposure ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("bind", "local"),
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.8.0.1:*", True),
        ("tcp://localhost:5555", True),
        ("tcp://[::1]:5555", True),
        ("ipc:///tmp/policy", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", False),
        ("tcp://192.168.0.7:5555", False),
        ("tcp://eth0:5555", False),
        ("tcp://localhost.example.org:5555", False),
    ],
)
def test_who_could_connect(bind, local):
    assert is_local(bind) == local
    check_exposure(bind, protected=True, unencrypted=False)
    check_exposure(bind, protected=False, unencrypted=True)
    if not local:
        with pytest.raises(ValueError, match="--unencrypted"):
            check_exposure(bind, protected=False, unencrypted=False)


def test_the_server_is_not_even_loaded_then(tmp_path):
    with pytest.raises(ValueError, match="other machines could connect"):
        serve(ServerConfig(checkpoint=tmp_path / "nothing here", bind="tcp://0.0.0.0:5555"))
