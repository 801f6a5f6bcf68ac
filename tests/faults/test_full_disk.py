"""Results on a disk that is full: said clearly, and no earlier result is lost.

A limit on the size of files stands for it: the system refuses to write just the same.
"""

import resource
from contextlib import contextmanager

import pytest

from benchmarks.latency import write_samples
from benchmarks.results import write_results


@contextmanager
def full_disk(at_bytes=100):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def results(path, row):
    write_results(path.parent, path.stem, {}, [{"row": row}])


def samples(path, row):
    write_samples(path, [({"row": row}, [0.001] * 1000)])


@pytest.mark.parametrize(("write", "name"), [(results, "soak.json"), (samples, "soak.csv")])
def test_what_was_there_stays_and_the_error_says_so(tmp_path, write, name):
    path = tmp_path / name
    with (
        full_disk(),
        pytest.raises(OSError, match=rf"{name}: cannot be written \(File too large\)"),
    ):
        write(path, 1)
    assert list(tmp_path.iterdir()) == []
    write(path, 2)
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match="what was there before is untouched; make room"):
        write(path, 3)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
