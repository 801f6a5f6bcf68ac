"""Result files: whole, with the command, and without where they were made."""

import json
from pathlib import Path

from benchmarks.results import write_results


def test_paths_are_told_as_seen_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"checkpoint": Path.cwd() / "models" / "desk", "elsewhere": Path("/somewhere/else")}
    path = write_results(Path("out"), "name", config, [{"row": 1}])
    content = json.loads(path.read_text())
    assert content["config"] == {"checkpoint": "models/desk", "elsewhere": "/somewhere/else"}
    assert content["rows"] == [{"row": 1}]
    assert content["command"].startswith("python -m benchmarks")
    assert [file.name for file in Path("out").iterdir()] == ["name.json"]
