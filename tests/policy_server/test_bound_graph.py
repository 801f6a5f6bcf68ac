"""policy_server/backends/bound_graph.py: on which processors int8 products need more care."""

import platform

import pytest

from policy_server.backends.bound_graph import int8_products_overflow


@pytest.mark.parametrize(
    ("machine", "flags", "overflow"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("x86_64", "fpu avx2 avx512f", True),
        ("x86_64", None, True),
        ("aarch64", "fp asimd", False),
    ],
)
def test_products_overflow_on_x86_without_vnni(tmp_path, monkeypatch, machine, flags, overflow):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\nbogomips : 1\n", encoding="utf-8")
    assert int8_products_overflow(cpuinfo) == overflow
