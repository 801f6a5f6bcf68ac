"""The transport benchmark: its targets on rows made up here, and real sockets once."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import transport, transport_report
from benchmarks.transport import SPECS, TransportConfig, main, running_case
from benchmarks.transport_client import CLIENTS, make_observation
from benchmarks.transport_server import SERVERS
from client.wire import WireLimits
from models import checkpoint
from models.vision import cameras

ROOT = Path(transport.__file__).parents[1]


def make_row(name, observation, seconds, requests=1000):
    return transport_report.row_of(
        name,
        observation,
        [seconds] * requests,
        request_bytes=500,
        reply_bytes=600,
        client_cpu_s=requests * 1e-4,
        server_cpu_s=None,
    )


@pytest.mark.parametrize(
    ("ours_s", "openpi_s", "bare_s", "observation", "missed"),
    [
        (159e-6, 1e-3, 100e-6, "state", {"round_trip_p99_s"}),
        (161e-6, 1e-3, 100e-6, "state", {"round_trip_p50_s", "round_trip_p99_s"}),
        (124e-6, 1e-3, 100e-6, "state", set()),
        (1.24e-3, 3.73e-3, 1e-3, "images", set()),
        (1.26e-3, 3.73e-3, 1e-3, "images", {"round_trip_p50_s", "round_trip_p99_s"}),
        (1.24e-3, 3.71e-3, 1e-3, "images", {"round_trip_p50_s"}),
    ],
)
def test_targets_are_those_of_the_observation(ours_s, openpi_s, bare_s, observation, missed):
    seconds = {"policy_server": ours_s, "openpi": openpi_s, "bare_pyzmq": bare_s}
    targets = transport_report.targets_of(
        [make_row(name, observation, s) for name, s in seconds.items()]
    )
    assert [target["what"] for target in targets] == ["round_trip_p50_s", "round_trip_p99_s"]
    assert {target["what"] for target in targets if not target["met"]} == missed
    for target in targets:
        assert ("missed by" in transport_report.told(target)) == (not target["met"])


def test_what_was_not_measured_is_not_judged():
    ours = [make_row("policy_server", name, 1e-3) for name in SPECS]
    assert transport_report.targets_of(ours) == []
    few = [make_row(name, "state", 1e-3, requests=999) for name in ("policy_server", "bare_pyzmq")]
    assert [row["round_trip_p99_s"] for row in few] == [None, None]
    assert [t["what"] for t in transport_report.targets_of(few)] == ["round_trip_p50_s"]
    assert transport_report.table_of(few).row_count == 2


def test_a_row_has_shares_of_the_samples_and_processor_time_of_one_request():
    row = transport_report.row_of(
        "openpi",
        "images",
        np.arange(1, 1001) / 1000,
        request_bytes=1,
        reply_bytes=2,
        client_cpu_s=50.0,
        server_cpu_s=20.0,
    )
    assert row["round_trip_p50_s"] == pytest.approx(0.5005)
    assert row["round_trip_p90_s"] == pytest.approx(0.9001)
    assert row["round_trip_p99_s"] == pytest.approx(0.99001)
    assert (row["client_cpu_s"], row["server_cpu_s"]) == (0.05, 0.02)


@pytest.mark.parametrize(
    "fields", [{"requests": 0}, {"block": 0}, {"transports": ("openpi",)}, {"observations": ()}]
)
def test_what_cannot_be_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        TransportConfig(**fields)


def test_without_openpis_environment_the_command_that_makes_it_is_named(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(transport, "running_server", lambda *_, **__: started.append(1))
    missing = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=re.escape(str(missing))) as raised:
        main(TransportConfig(openpi=missing, out=tmp_path))
    command = re.search("`make (.+?)`", str(raised.value))
    assert f"\n{command[1]}:\n" in (ROOT / "Makefile").read_text()
    assert not started


def test_openpis_processes_need_nothing_of_this_project_before_they_know_who_they_are():
    for name in ("transport_client", "transport_server"):
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        top = re.findall(r"^(?:import|from) (\w+)", text, re.M)
        assert not set(top) & {"benchmarks", "client", "models", "policy_server", "zmq"}
    assert set(CLIENTS) == set(transport.TRANSPORTS)
    assert set(SERVERS) == set(transport.TRANSPORTS) - {"policy_server"}


def test_the_policy_with_two_cameras_takes_what_is_sent(tmp_path):
    spec = SPECS["images"]
    assert [array.shape for array in cameras(spec).values()] == [(1, 224, 224, 3)] * 2
    transport.save_checkpoint(spec, tmp_path)
    manifest, policy = checkpoint.load(tmp_path)
    assert manifest.spec == policy.spec == spec
    arrays = {name: (array.shape, array.dtype) for name, array in spec.observation.items()}
    observation = make_observation({"seed": 1, "arrays": arrays})
    spec.validate_observation(observation)
    assert len(np.unique(observation["left"])) == 256  # not to be compressed
    assert WireLimits.of_requests(spec).max_array_bytes >= observation["left"].nbytes


@pytest.mark.realtime
def test_ours_and_bare_pyzmq_carry_the_same_bytes_over_real_sockets(tmp_path):
    transports = ("policy_server", "bare_pyzmq")
    options = {"observations": ("images",), "openpi": tmp_path / "nowhere"}
    main(TransportConfig(transports, requests=45, block=20, out=tmp_path, **options))
    result = json.loads((tmp_path / "transport.json").read_text())
    ours, bare = result["rows"]
    with np.load(tmp_path / "transport_samples.npz") as file:
        samples = dict(file)
    pictures = 2 * 224 * 224 * 3
    for row in (ours, bare):
        assert row["requests"] == len(samples[f"images.{row['transport']}"]) == 45
        assert pictures < row["request_bytes"] == ours["request_bytes"] < pictures + 1000
        assert 16 * 4 * 4 < row["reply_bytes"] == ours["reply_bytes"] < 1000
        median_s = np.median(samples[f"images.{row['transport']}"])
        assert row["round_trip_p50_s"] == pytest.approx(median_s)
        assert 0 < row["client_cpu_s"] < 0.05
        assert row["server_cpu_s"] is None or 0 < row["server_cpu_s"] < 0.05
    assert result["config"]["openpi_packages"] is None
    assert result["config"]["targets"] == []  # of so few, and without openpi
    assert (tmp_path / "transport.png").stat().st_size > 1000


@pytest.mark.realtime
def test_openpis_transport_with_real_sockets():
    config = TransportConfig()
    if not (config.openpi / "ready").exists():
        pytest.skip(f"no {config.openpi}: `make openpi` makes it")
    arrays = {
        name: (array.shape, array.dtype) for name, array in SPECS["images"].observation.items()
    }
    given = {"seed": 1, "arrays": arrays, "chunk_shape": (16, 4)}
    with running_case("openpi", "images", given, config.openpi_python) as case:
        case.turn(5)
        case.turn(3)
    row = case.row()
    assert row["requests"] == 8
    assert row["request_bytes"] > 2 * 224 * 224 * 3
    assert row["reply_bytes"] > 16 * 4 * 4
    assert case.client.described["packages"]["openpi-server"] == "0.1.0"
