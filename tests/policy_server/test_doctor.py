"""What the doctor makes of a kernel's files, which lie in a folder here, and of clocks."""

import os
import subprocess
import sys

import pytest

from policy_server.doctor import (
    DoctorConfig,
    busy_s,
    examine,
    examine_cores,
    examine_governor,
    examine_others,
    examine_quota,
    examine_sessions,
    examine_swap,
    examine_timer,
    wake_ups,
)


def put(root, contents):
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


QUOTAS = {
    "version 2, plenty": ({"sys/fs/cgroup/cpu.max": "400000 100000\n"}, "4 cores", False),
    "version 2, too little": ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, "1.5 cores", True),
    "version 2, used up": (
        {
            "sys/fs/cgroup/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 17\nnr_periods 9\nnr_throttled 3\n",
        },
        "4 cores, used up 3 times",
        True,
    ),
    "version 2, of a group further up": (
        {
            "proc/self/cgroup": "0::/robots/arm\n",
            "sys/fs/cgroup/robots/arm/cpu.max": "max 100000\n",
            "sys/fs/cgroup/robots/cpu.max": "50000 100000\n",
        },
        "0.5 cores",
        True,
    ),
    "version 2, none": ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, "none", False),
    "version 1": (
        {
            "proc/self/cgroup": "5:devices:/x\n4:cpu,cpuacct:/docker/1f\n0::/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        "1 cores",
        True,
    ),
    "version 1, none": ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, "none", False),
    "nothing to read": ({}, "none", False),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_a_container_s_quota(tmp_path, case):
    contents, seen, threat = QUOTAS[case]
    finding = examine_quota(put(tmp_path, contents))
    assert finding.seen.startswith(seen)
    assert bool(finding.remedy) == threat
    assert not threat or "--cpuset-cpus" in finding.remedy


GOVERNOR = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"


def test_a_governor_that_saves_power_is_named(tmp_path):
    assert examine_governor(tmp_path).remedy == ""
    put(tmp_path, {GOVERNOR.format(0): "performance\n", GOVERNOR.format(11): "performance\n"})
    assert examine_governor(tmp_path).remedy == ""
    put(tmp_path, {GOVERNOR.format(11): "powersave\n"})
    finding = examine_governor(tmp_path)
    assert finding.seen == "performance, powersave"
    assert "cpupower" in finding.remedy


@pytest.mark.parametrize(
    ("total", "free", "seen", "threat"),
    [(0, 0, "none", False), (2048, 2048, "0 of 2 MiB", False), (4096, 1024, "3 of 4 MiB", True)],
)
def test_swap_in_use_is_a_threat(tmp_path, total, free, seen, threat):
    meminfo = (
        f"MemTotal: 99 kB\nSwapTotal:   {total} kB\nSwapFree:   {free} kB\nHugePages_Free: 0\n"
    )
    finding = examine_swap(put(tmp_path, {"proc/meminfo": meminfo}))
    assert finding.seen.startswith(seen)
    assert ("swapoff" in finding.remedy) == threat


def test_time_that_other_machines_steal_counts_as_busy(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    assert busy_s(tmp_path) is None
    put(tmp_path, {"proc/stat": "cpu  100 20 30 9999 8888 4 5 600 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"})
    assert busy_s(tmp_path) == pytest.approx((100 + 20 + 30 + 4 + 5 + 600) / 100)


@pytest.mark.parametrize(
    ("finding", "threat"),
    [
        (examine_cores(1), True),
        (examine_cores(2), False),
        (examine_cores(None), False),
        (examine_others(0.4, 2), False),
        (examine_others(0.6, 2), True),
        (examine_others(None, 2), False),
        (examine_timer([0.0001] * 991 + [0.0099] * 9), False),
        (examine_timer([0.0001] * 980 + [0.0011] * 20), True),
        (examine_timer([0.0001] * 999 + [0.0101]), True),
        (examine_timer([]), False),
    ],
)
def test_what_is_a_threat(finding, threat):
    assert bool(finding.remedy) == threat, finding


def test_wake_ups_are_counted_from_when_they_were_due():
    now_s, late_s = [5.0], iter([0.0001, 0.0005, 0.003] * 100)

    def sleep(duration_s):
        now_s[0] += duration_s + next(late_s)

    ticks = []
    found = wake_ups(0.02, tick=ticks.append, clock=lambda: now_s[0], sleep=sleep)
    assert found[:3] == pytest.approx([0.0001, 0.0005, 0.003])
    assert ticks == pytest.approx([0.0021, 0.0046, 0.0096, 0.0117, 0.0142, 0.0192])
    assert len(found) == len(ticks)


@pytest.mark.parametrize(
    ("enabled", "own_session", "threat"),
    [("1", False, True), ("1", True, False), ("0", False, False)],
)
def test_a_priority_that_counts_in_one_terminal_only_is_a_threat(
    tmp_path, monkeypatch, enabled, own_session, threat
):
    put(tmp_path, {"proc/sys/kernel/sched_autogroup_enabled": f"{enabled}\n"})
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid() if own_session else 1)
    finding = examine_sessions(tmp_path, -10)
    assert ("setsid" in finding.remedy) == threat
    assert examine_sessions(tmp_path, 0).remedy == ""
    put(tmp_path, {"proc/self/cgroup": "0::/robots\n", "sys/fs/cgroup/robots/cpu.weight": "300\n"})
    finding = examine_sessions(tmp_path, -10)
    assert (finding.remedy, "weight 300" in finding.seen) == ("", True)


def test_a_machine_that_tells_nothing_is_examined_all_the_same(tmp_path):
    findings = examine(DoctorConfig(duration_s=0.05, nice=0), tmp_path)
    seen = {finding.what: finding.seen for finding in findings}
    for what in ("frequency governor", "swap", "load of others"):
        assert seen[what].startswith("unknown")
    assert "late by" in seen["timer"]


def test_the_command_says_all_and_its_status_is_its_verdict():
    command = [sys.executable, "-m", "policy_server", "doctor", "--duration-s", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    verdicts = [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "]
    assert len(verdicts) == 8
    assert done.returncode == ("THREAT" in verdicts)
    assert done.stdout.count("→") == verdicts.count("THREAT")
