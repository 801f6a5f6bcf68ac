"""A real server process and real sockets: answers, errors, many clients, an orderly end."""

import signal
import threading
import time
from contextlib import contextmanager

import msgpack
import numpy as np
import pytest
import zmq

from benchmarks.server_process import running_server
from client import (
    CancelledError,
    ConnectionLostError,
    DeadlineError,
    InvalidRequestError,
    PolicyClient,
    PolicyError,
    wire,
)
from client.messages import ActRequest, CancelRequest, PingRequest, Pong
from client.sims.pusht.spec import PUSHT_IMAGE_SPEC
from client.wire import WireLimits
from models.grids import make_timesteps
from models.instruction_encoder import InstructionEncoder
from models.sampling import Sampling, sample_chunks
from models.schedules import make_alpha_bar
from models.vision import VisionConfig
from tests.policies import make_policy, save_checkpoint

BUDGET_S = 2.0
"""Far more than is needed: what is tested here is not speed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, make_policy(), min_steps=50, max_useful_steps=60)
    return folder


@pytest.fixture(scope="module", params=["torch", "onnx"])
def server(request, folder):
    with running_server(folder, "--backend", request.param) as server:
        yield server


@pytest.fixture
def policy(server):
    with PolicyClient(server.address) as client:
        client.metadata(timeout_s=5.0)
        yield client


def observe(seed=0):
    return {"state": np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)}


def act(policy, observation=None, instruction="open the drawer", **options):
    options = {"budget_s": BUDGET_S, "timeout_s": 5.0, **options}
    return policy.act(observe() if observation is None else observation, instruction, **options)


def test_metadata_tells_what_is_served(policy):
    metadata = policy.metadata()
    assert metadata.model_id == "tiny"
    assert metadata.spec == make_policy().spec
    assert (metadata.min_steps, metadata.max_useful_steps, metadata.max_steps) == (50, 60, 1000)
    assert metadata.defaults.guidance_scale == 0
    assert metadata.limits["max_instruction_bytes"] == 1000


@pytest.mark.parametrize("w", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_chunk_is_what_offline_sampling_gives(policy, w, eta):
    chunk = act(policy, num_steps=6, guidance_scale=w, eta=eta, seed=11)
    expected = sample_chunks(
        make_policy(),
        {"state": observe()["state"][None]},
        InstructionEncoder().encode(["open the drawer"]),
        Sampling(num_steps=6, guidance_scale=w, eta=eta),
        seeds=[11],
    )[0]
    np.testing.assert_allclose(chunk.actions, expected, atol=1e-4)
    assert chunk.actions.dtype == np.float32
    assert chunk.timesteps == tuple(make_timesteps("trailing", 6, make_alpha_bar("cosine", 1000)))
    assert chunk.nfe == 6 * (2 if w == 2.0 else 1)
    assert (chunk.num_steps, chunk.guidance_scale, chunk.eta, chunk.seed) == (6, w, eta, 11)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_pictures_are_seen_as_they_were_sent(tmp_path, backend):
    camera_policy = make_policy(spec=PUSHT_IMAGE_SPEC, vision=VisionConfig())
    save_checkpoint(tmp_path, camera_policy)
    rng = np.random.default_rng(0)
    observations = [
        {
            "camera": rng.integers(256, size=(1, 96, 96, 3), dtype=np.uint8),
            "finger": rng.standard_normal((1, 2)).astype(np.float32),
        }
        for _ in range(2)
    ]
    with (
        running_server(tmp_path, "--backend", backend) as server,
        PolicyClient(server.address) as client,
    ):
        assert client.metadata(timeout_s=5.0).spec == PUSHT_IMAGE_SPEC
        chunks = [act(client, seen, num_steps=6, seed=11) for seen in observations]
        with pytest.raises(InvalidRequestError, match=r"camera.*uint8.*float32"):
            act(client, {**observations[0], "camera": observations[0]["camera"].astype("f4")})
    expected = sample_chunks(
        camera_policy,
        {
            name: np.stack([seen[name] for seen in observations])
            for name in PUSHT_IMAGE_SPEC.observation
        },
        np.repeat(InstructionEncoder().encode(["open the drawer"]), 2, axis=0),
        Sampling(num_steps=6),
        seeds=[11, 11],
    )
    np.testing.assert_allclose([chunk.actions for chunk in chunks], expected, atol=1e-3)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_auto_gives_all_useful_steps_when_there_is_time_and_echoes_the_defaults(policy):
    chunk = act(policy)
    assert chunk.num_steps == 60
    assert chunk.deadline_met
    assert not chunk.late
    assert (chunk.guidance_scale, chunk.eta, chunk.model_id) == (0.0, 0.0, "tiny")
    again = act(policy, seed=chunk.seed)
    np.testing.assert_array_equal(again.actions, chunk.actions)


def test_the_timing_is_of_this_request(policy):
    chunk = act(policy, num_steps=200)
    timing = chunk.timing
    assert timing.queue_s + timing.encode_s + timing.denoise_s <= timing.total_s
    assert timing.total_s <= chunk.latency_s
    assert timing.denoise_s > 0.5 * timing.total_s


def test_a_new_instruction_changes_the_answer(policy):
    one = act(policy, instruction="open the drawer", seed=1)
    two = act(policy, instruction="turn the tap to the left", seed=1)
    assert not np.allclose(one.actions, two.actions)


def test_a_budget_that_cannot_be_met_is_refused_with_the_soonest(policy):
    act(policy)  # the instruction is cached
    with pytest.raises(DeadlineError, match="cannot meet deadline") as caught:
        act(policy, budget_s=5e-4)
    assert 0 < caught.value.soonest_s < 1
    late = act(policy, budget_s=5e-4, best_effort=True)
    assert late.num_steps == 50
    assert late.late
    assert not late.deadline_met


def test_a_fixed_count_is_kept_although_it_is_late(policy):
    chunk = act(policy, num_steps=1000, budget_s=0.001)
    assert chunk.num_steps == 1000
    assert chunk.late


NAN = observe()
NAN["state"][1, 2] = np.nan
BAD = {
    "shape": (
        {"observation": {"state": np.zeros((2, 4), np.float32)}},
        r"state.*\(2, 3\).*\(2, 4\)",
    ),
    "dtype": ({"observation": {"state": np.zeros((2, 3))}}, "state.*float32.*float64"),
    "nan": ({"observation": NAN}, r"state.*finite.*nan.*\[1, 2\]"),
    "missing": ({"observation": {}}, r"missing \['state'\]"),
    "unknown": (
        {"observation": {**observe(), "image": np.zeros((2, 3), np.float32)}},
        r"unknown \['image'\]",
    ),
    "empty instruction": ({"instruction": "  "}, "instruction"),
    "10 kB instruction": ({"instruction": "x" * 10_000}, "instruction.*1000.*10000"),
    "budget 0": ({"budget_s": 0.0}, "budget_s.*> 0.*0"),
    "budget negative": ({"budget_s": -1.0}, "budget_s.*> 0.*-1"),
    "budget nan": ({"budget_s": float("nan")}, "budget_s.*nan"),
    "num_steps 0": ({"num_steps": 0}, "num_steps.*>= 1.*got 0"),
    "num_steps over T": ({"num_steps": 1001}, r"num_steps.*1\.\.1000.*1001"),
    "eta": ({"eta": 1.5}, "eta.*<= 1.*1.5"),
    "w": ({"guidance_scale": float("inf")}, "guidance_scale.*finite.*inf"),
    "w too large": ({"guidance_scale": 1e39}, "guidance_scale.*100.*1e"),
    "seed": ({"seed": -1}, "seed.*-1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_field_expected_and_got(policy, case):
    options, message = BAD[case]
    with pytest.raises(InvalidRequestError, match=message):
        act(policy, **options)
    assert act(policy).deadline_met  # the connection lives on


UNCHECKED = ["shape", "nan", "missing", "unknown", "num_steps over T"]


@pytest.mark.parametrize("case", UNCHECKED)
def test_the_server_does_not_rely_on_the_client_s_checks(server, case):
    """Clients check nothing before they know the metadata; these never ask for it."""
    options, message = BAD[case]
    options = {"instruction": "open the drawer", "budget_s": BUDGET_S, **options}
    observation = options.pop("observation", observe())
    with PolicyClient(server.address) as client:
        client.ping(timeout_s=5.0)
        request_id = client.submit(observation, timeout_s=5.0, **options)
        (error,) = client.poll(5.0)
        assert error.request_id == request_id
        assert isinstance(error, InvalidRequestError)
        with pytest.raises(InvalidRequestError, match=message):
            raise error


def raw_exchange(server, frames):
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(server.address)
    socket.send_multipart(frames)
    reply = socket.recv_multipart() if socket.poll(5000) else None
    socket.close()
    context.term()
    return None if reply is None else msgpack.unpackb(reply[0])


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [b"hello"],
        [msgpack.packb({"protocol": 99, "type": "ping"})],
        [msgpack.packb({"protocol": 99, "type": "ping", "request_id": 2**63})],
        [b"\x91" * 5000],
    ],
)
def test_garbage_gets_an_error_and_harms_nobody(server, policy, frames):
    reply = raw_exchange(server, frames)
    assert reply["type"] == "error"
    assert reply["code"] == "protocol"
    assert act(policy).deadline_met


def test_a_request_id_that_no_reply_can_carry_harms_nobody(server, policy):
    header = {"protocol": 1, "type": "ping", "request_id": 2**64 - 1}
    reply = raw_exchange(server, [msgpack.packb(header)])
    assert (reply["code"], reply["request_id"]) == ("invalid_request", None)
    assert act(policy).deadline_met


def test_a_frame_over_the_limit_is_never_received(server, policy):
    too_large = WireLimits().max_frame_bytes + 1
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(server.address)
    socket.send_multipart([b"x", bytes(too_large)])
    assert not socket.poll(300)
    socket.close()
    context.term()
    assert act(policy).deadline_met


def test_many_clients_each_get_their_own_answers(server):
    expected, results, faults = {}, {}, []
    with PolicyClient(server.address) as client:
        client.metadata(timeout_s=5.0)
        for i in range(8):
            expected[i] = act(client, observe(i), num_steps=20, seed=i).actions

    def robot(i):
        try:
            with PolicyClient(server.address) as client:
                client.metadata(timeout_s=5.0)
                results[i] = [act(client, observe(i), num_steps=20, seed=i) for _ in range(5)]
        except PolicyError as error:
            faults.append(error)

    threads = [threading.Thread(target=robot, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    for i, chunks in results.items():
        for chunk in chunks:
            np.testing.assert_allclose(chunk.actions, expected[i], atol=1e-5)


def raw_act(session, request_id, **fields):
    fields = {"budget_s": BUDGET_S, **fields}
    return wire.encode(ActRequest(session, request_id, observe(), "open the drawer", **fields))


@contextmanager
def raw_socket(server):
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(server.address)
        yield socket


def test_robots_may_share_a_connection(server):
    with raw_socket(server) as socket:
        for i in range(12):
            socket.send_multipart(raw_act(f"robot-{i}", i, num_steps=10 + i))
        chunks = []
        for _ in range(12):
            assert socket.poll(5000)
            chunks.append(wire.decode(socket.recv_multipart()))
    assert sorted((c.request_id, c.num_steps) for c in chunks) == [(i, 10 + i) for i in range(12)]
    assert all(chunk.rows_per_call >= 1 for chunk in chunks)


def test_a_cancelled_request_is_answered_at_once_and_others_go_on(server):
    with raw_socket(server) as socket, raw_socket(server) as other:
        socket.send_multipart(raw_act("a", 1, num_steps=1000, budget_s=100.0))
        other.send_multipart(raw_act("b", 1, num_steps=500, budget_s=100.0))
        other.send_multipart(wire.encode(CancelRequest("a", 1)))  # is not theirs
        other.send_multipart(wire.encode(PingRequest(2)))
        assert other.poll(5000)
        assert wire.decode(other.recv_multipart()) == Pong(2)
        socket.send_multipart(wire.encode(CancelRequest("a", 1)))
        socket.send_multipart(wire.encode(CancelRequest("a", 2)))  # nobody asked that
        socket.send_multipart(wire.encode(PingRequest(3)))
        replies = []
        for _ in range(2):
            assert socket.poll(5000)
            replies.append(wire.decode(socket.recv_multipart()))
        assert [(type(r).__name__, r.request_id) for r in replies] == [
            ("ErrorReply", 1),
            ("Pong", 3),
        ]
        assert replies[0].code == "cancelled"
        assert other.poll(5000)
        assert wire.decode(other.recv_multipart()).num_steps == 500


def test_cancelling_frees_the_server(policy):
    request_id = policy.submit(observe(), "open the drawer", budget_s=100.0, num_steps=1000)
    policy.ping(timeout_s=5.0)  # so the request before it has been taken in
    policy.cancel(request_id)
    (error,) = policy.poll(5.0)
    assert isinstance(error, CancelledError)
    policy.ping(timeout_s=5.0)
    assert policy.dropped_replies == 1  # that it was cancelled
    assert policy.poll() == []


def test_ping_is_answered_while_a_model_runs(server, policy):
    with PolicyClient(server.address) as other:
        other.ping(timeout_s=5.0)
        policy.submit(observe(), "open the drawer", budget_s=BUDGET_S, num_steps=1000)
        other.ping(timeout_s=5.0)
        assert policy.poll(0.0) == []  # the model still runs, and the ping is back
        (chunk,) = policy.poll(10.0)
        assert chunk.num_steps == 1000


def test_sigterm_finishes_what_is_in_service_and_exits_zero(folder):
    with running_server(folder, "--backend", "torch") as server:
        with PolicyClient(server.address) as client:
            act(client)
            client.submit(observe(), "open the drawer", budget_s=BUDGET_S, num_steps=300)
            client.ping(timeout_s=5.0)  # so the request before it has been taken in
            server.process.send_signal(signal.SIGTERM)
            (chunk,) = client.poll(5.0)
            assert chunk.num_steps == 300
        assert server.process.wait(5.0) == 0


def test_a_killed_server_is_noticed_within_the_timeout(folder):
    with (
        running_server(folder, "--backend", "torch") as server,
        PolicyClient(server.address) as client,
    ):
        act(client)
        server.process.kill()
        server.process.wait()
        begun_s = time.monotonic()
        with pytest.raises(ConnectionLostError):
            act(client, timeout_s=0.5)
        assert time.monotonic() - begun_s < 2.0


def test_an_address_in_use_is_explained(folder, server):
    with (
        pytest.raises(RuntimeError, match="is another server running there"),
        running_server(folder, "--backend", "torch", bind=server.address),
    ):
        pass


def test_a_missing_checkpoint_is_explained(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"manifest\.json: not found"),
        running_server(tmp_path),
    ):
        pass
