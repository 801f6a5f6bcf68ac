"""What on this machine threatens deadlines, and what to do about it.

Most of it is read from files of the kernel, which differ between systems and are missing in
containers: what cannot be read is told as unknown, and is no threat. The rest is measured as the
server would meet it: at its priority, in a thread that sleeps and wakes up.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from policy_server.cores import allowed_cores, control_groups, quota_cores, read_text
from policy_server.cost_model import quantile
from policy_server.priority import leads_session, set_nice

_PERIOD_S = 0.002
_P99_S, _MAX_S = 0.001, 0.010
"""Wake-ups: of a hundred one may be so late; and plans leave no more free for surprises."""
_BUSY_CORES = 0.25
"""Others may use so much of all cores together."""
_MIN_CORES = 2
"""One for the network, one for everything else: sockets, robots, the system."""


@dataclass(frozen=True)
class DoctorConfig:
    """What `python -m policy_server doctor` takes.

    Attributes:
        duration_s: for so long timers and the load of others are measured.
        nice: the server's `--nice`.
    """

    duration_s: float = 10.0
    nice: int = -10

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        if not self.duration_s > 0:
            msg = f"duration_s: expected more than 0, got {self.duration_s:g}"
            raise ValueError(msg)
        if not -20 <= self.nice <= 19:
            msg = f"nice: expected -20..19, got {self.nice}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        seen: what it is like here.
        remedy: what to change; empty if it is no threat.
    """

    what: str
    seen: str
    remedy: str = ""


def examine_cores(usable: int | None) -> Finding:
    """How many may be used, all limits but quotas considered."""
    if usable is None:
        return Finding("cores", "unknown")
    remedy = f"give it at least {_MIN_CORES}: docker --cpuset-cpus, taskset, a larger machine"
    return Finding("cores", f"{usable} usable", "" if usable >= _MIN_CORES else remedy)


def examine_quota(root: Path) -> Finding:
    """Processor time that a container may use: when it is spent, everything stands still.

    Args:
        root: "/", or a folder with the same files.
    """
    cores, throttled = quota_cores(root), 0
    for folder in control_groups(root):
        statistics = (read_text(folder / "cpu.stat") or "").splitlines()
        counts = dict(line.split(maxsplit=1) for line in statistics if " " in line)
        throttled = max(throttled, int(counts.get("nr_throttled", "0")))
    if cores is None:
        return Finding("container's quota", "none")
    seen = f"{cores:g} cores, used up {throttled} times so far"
    remedy = (
        "no quota (docker --cpus, Kubernetes limits.cpu, systemd CPUQuota): whoever has used it up "
        "stands still for up to 100 ms; reserve whole cores instead (--cpuset-cpus)"
    )
    return Finding("container's quota", seen, remedy if cores < _MIN_CORES or throttled else "")


def examine_governor(root: Path) -> Finding:
    """Whether cores slow down when there is little to do, and are slow at first."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    governors = sorted({found for file in files if (found := read_text(file))})
    if not governors:
        return Finding("frequency governor", "unknown (usual in virtual machines)")
    slow = [name for name in governors if name != "performance"]
    remedy = "cpupower frequency-set --governor performance" if slow else ""
    return Finding("frequency governor", ", ".join(governors), remedy)


def examine_swap(root: Path) -> Finding:
    """Memory that has been written to a disk is read again when it is needed."""
    lines = (read_text(root / "proc/meminfo") or "").splitlines()
    sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    if not {"SwapTotal", "SwapFree"} <= sizes.keys():
        return Finding("swap", "unknown")
    total, free = (int(sizes[name][0]) for name in ("SwapTotal", "SwapFree"))
    if not total:
        return Finding("swap", "none")
    remedy = "swapoff -a, or more memory: what was swapped out comes back in milliseconds each"
    seen = f"{(total - free) / 2**10:.0f} of {total / 2**10:.0f} MiB in use"
    return Finding("swap", seen, remedy if total > free else "")


def examine_priority(nice: int) -> Finding:
    """Whether the server may go before other programs. Takes that priority, if so."""
    remedy = (
        f"LimitNICE={nice} (systemd), ulimit -e {20 - nice} or CAP_SYS_NICE: without it a busy "
        "neighbour takes whole time slices of some milliseconds"
    )
    if set_nice(nice):
        return Finding("priority", f"nice {nice} is permitted")
    return Finding("priority", f"nice {nice} is not permitted", remedy)


def examine_sessions(root: Path, nice: int) -> Finding:
    """Whether a priority counts for all programs, or between those of one session only."""
    group = next(control_groups(root), None)
    weight = None if group is None else read_text(group / "cpu.weight")
    if weight is not None:
        seen = f"in a control group of weight {weight} (systemd's CPUWeight=), which counts first"
        return Finding("sessions", seen)
    if (read_text(root / "proc/sys/kernel/sched_autogroup_enabled") or "0") == "0":
        return Finding("sessions", "not told apart by the scheduler")
    seen = "the scheduler shares time out between sessions first (autogroup)"
    remedy = (
        "start the server, and the doctor, by setsid or as a service: it then raises the priority "
        "of its own session; in a terminal's it does not count against other sessions' programs"
    )
    return Finding("sessions", seen, "" if nice >= 0 or leads_session() else remedy)


def busy_s(root: Path) -> float | None:
    """Processor time that all cores together have been busy, stolen by other machines included."""
    fields = (read_text(root / "proc/stat") or "").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    user, low, system, _idle, _waiting, interrupts, soft, stolen = map(int, fields[1:9])
    ticks = user + low + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def examine_others(cores_busy: float | None, usable: int | None) -> Finding:
    """What other programs do here meanwhile."""
    if cores_busy is None:
        return Finding("load of others", "unknown")
    seen = f"{cores_busy:.2f} cores busy with other programs"
    remedy = "move them elsewhere, or keep cores for the server (isolcpus, cpuset)"
    return Finding(
        "load of others", seen, remedy if cores_busy > _BUSY_CORES * (usable or 1) else ""
    )


def wake_ups(
    duration_s: float,
    *,
    tick: Callable[[float], object],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[float]:
    """How much later than asked a sleeping thread was woken, in seconds, every two milliseconds.

    Args:
        duration_s: in all.
        tick: told the time since the start.
        clock: monotonic, seconds.
        sleep: for so many seconds or more.
    """
    start_s = clock()
    late_s = []
    due_s = start_s + _PERIOD_S
    while due_s < start_s + duration_s:
        sleep(max(0.0, due_s - clock()))
        now_s = clock()
        late_s.append(now_s - due_s)
        tick(now_s - start_s)
        due_s = max(due_s, clock()) + _PERIOD_S
    return late_s


def examine_timer(late_s: Sequence[float]) -> Finding:
    """How late threads wake up here."""
    if not late_s:
        return Finding("timer", "not measured: too short")
    ordered = sorted(late_s)
    p99_s, worst_s = quantile(ordered, 0.99), ordered[-1]
    seen = (
        f"late by {quantile(ordered, 0.5) * 1e3:.2f} ms (median), {p99_s * 1e3:.2f} (p99), "
        f"{worst_s * 1e3:.2f} (worst) of {len(ordered)}"
    )
    remedy = (
        f"expected p99 up to {_P99_S * 1e3:g} ms, worst up to {_MAX_S * 1e3:g}: remove what is "
        "named above; on a shared virtual machine reserve its cores; for less a PREEMPT_RT kernel"
    )
    return Finding("timer", seen, remedy if p99_s > _P99_S or worst_s > _MAX_S else "")


def examine(config: DoctorConfig, root: Path = Path("/")) -> list[Finding]:
    """Look at everything; takes `config.duration_s`."""
    usable = allowed_cores()
    findings = [
        examine_cores(usable),
        examine_quota(root),
        examine_governor(root),
        examine_swap(root),
        examine_priority(config.nice),
        examine_sessions(root, config.nice),
    ]
    before_s, own_s, begun_s = busy_s(root), time.process_time(), time.monotonic()
    with tqdm(total=round(config.duration_s, 1), unit="s", desc="timer", leave=False) as bar:
        late_s = wake_ups(config.duration_s, tick=lambda s: _show(bar, s))
    after_s, passed_s = busy_s(root), time.monotonic() - begun_s
    others = None
    if before_s is not None and after_s is not None:
        others = max(0.0, after_s - before_s - (time.process_time() - own_s)) / passed_s
    return [*findings, examine_others(others, usable), examine_timer(late_s)]


def _show(bar: tqdm[None], now_s: float) -> None:
    if now_s - bar.n > 0.5:
        bar.update(round(now_s, 1) - bar.n)


def main(config: DoctorConfig) -> None:
    """Print what was found; the exit status is 1 if anything threatens deadlines."""
    findings = examine(config)
    for finding in findings:
        verdict = "THREAT" if finding.remedy else "ok"
        sys.stdout.write(f"{verdict:<7} {finding.what}: {finding.seen}\n")
        if finding.remedy:
            sys.stdout.write(f"        → {finding.remedy}\n")
    sys.exit(1 if any(finding.remedy for finding in findings) else 0)
