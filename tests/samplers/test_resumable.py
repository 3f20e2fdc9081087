"""Rows on disk: whole batches only, whatever happened, and never a mixture of two settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gakd.errors import InputError
from gakd.files import read_sealed
from gakd.samplers import ResumableRows
from tests.flips import turned

SETTINGS = {"model": "m", "sampling": {"seed": 10, "top_p": 1.0}, "output": Path("x")}


def batch(index: int) -> list[dict[str, str]]:
    return [{"output": f"row {index}.{row}: line\u2028separator, é and \r\n"} for row in range(index)]


def written(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def test_goes_on_after_the_last_whole_batch(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    first = ResumableRows(path, SETTINGS)
    assert (first.batches, first.totals) == (0, {})
    for index in (2, 0, 3):  # a batch may leave no row
        first.append(batch(index), {"rows": index, "odd": index % 2})
    with path.open("a") as file:  # killed in the middle of the next batch, after its sidecar's last update
        file.write('{"output": "whole line"}\n{"output": "ha')
    second = ResumableRows(path, SETTINGS)
    assert (second.batches, second.totals) == (3, {"rows": 5, "odd": 1})
    second.append(batch(1), {"rows": 1, "odd": 1})
    assert written(path) == batch(2) + batch(3) + batch(1)
    assert ResumableRows(path, SETTINGS).totals == {"rows": 6, "odd": 2}


def test_killed_before_the_first_batch(tmp_path):
    ResumableRows(tmp_path / "rows.jsonl", SETTINGS)
    again = ResumableRows(tmp_path / "rows.jsonl", SETTINGS)
    again.append(batch(1), {"rows": 1})
    assert written(tmp_path / "rows.jsonl") == batch(1)


def test_other_settings_are_refused_and_nothing_is_touched(tmp_path):
    path = tmp_path / "rows.jsonl"
    ResumableRows(path, SETTINGS).append(batch(2), {"rows": 2})
    with path.open("a") as file:
        file.write("half")
    before = path.read_bytes()
    other = SETTINGS | {"sampling": {"seed": 20, "top_p": 1.0}, "more": 1}
    with pytest.raises(ValueError, match=r"more was None, is 1; sampling was \{'seed': 10.* is \{'seed': 20"):
        ResumableRows(path, other)
    with pytest.raises(ValueError, match="model was m, is None"):
        ResumableRows(path, {name: value for name, value in SETTINGS.items() if name != "model"})
    assert path.read_bytes() == before


def test_foreign_and_shortened_files_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="something else wrote it"):
        ResumableRows(path, SETTINGS)
    assert path.read_text() == "{}\n"
    path.unlink()
    ResumableRows(path, SETTINGS).append(batch(2), {"rows": 2})
    path.write_text("")
    with pytest.raises(ValueError, match="rows were lost"):
        ResumableRows(path, SETTINGS)


def test_any_bit_that_is_another_is_noticed(tmp_path):
    path, sidecar = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.json"
    rows = ResumableRows(path, SETTINGS)
    for index in (2, 3):
        rows.append(batch(index), {"rows": index})
    named: list[str] = []
    for victim in (path, sidecar):
        whole = victim.read_bytes()
        for changed in turned(whole, 100):
            victim.write_bytes(changed)
            try:
                found = ResumableRows(path, SETTINGS)
            except InputError as error:
                named.append(str(error))
            else:  # white space of the sidecar
                assert victim == sidecar
                assert (found.batches, found.totals) == (2, {"rows": 5})
        victim.write_bytes(whole)
    assert len(named) > 160
    assert all("delete both" in line for line in named)


def test_a_file_from_before_there_were_digests_goes_on(tmp_path):
    path, sidecar = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.json"
    ResumableRows(path, SETTINGS).append(batch(2), {"rows": 2})
    held = read_sealed(sidecar)
    del held["sha256"]
    sidecar.write_text(json.dumps(held, indent=2))
    ResumableRows(path, SETTINGS).append(batch(1), {"rows": 1})
    assert written(path) == batch(2) + batch(1)
    assert "sha256" in read_sealed(sidecar)


def test_a_second_process_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = ResumableRows(path, SETTINGS)
    code = f"from gakd.samplers import ResumableRows; ResumableRows({str(path)!r}, {{}})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"InputError: another process writes {path}: wait for it or end it" in other.stderr
    rows.append(batch(1), {"rows": 1})
    del rows
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "was begun with other settings" in other.stderr
