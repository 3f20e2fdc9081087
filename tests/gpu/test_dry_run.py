"""The run itself, on a CPU at tiny sizes: every part runs, and one that fails, dies or is late takes no other down."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.gpu import __main__ as main
from tests.gpu import check_part, machine, parts, recorder, step_part, token_part, token_ways
from tests.gpu.setting import TINY, Deadline, Setting

KEYS = {
    "token": {"numbers", "width", "divergence", "way"},
    "step": {"layers", "student", "teacher"},
    "generation": {"weights", "prompts", "new_tokens"},
}
MEASURED = {
    "token": {"ms", "tflops"},
    "step": {"ms", "ms_micro_batch", "tokens_per_second", "tflops", "mfu", "peak_bytes", "first_loss", "last_loss"},
    "generation": {"ms", "ms_token", "tokens_per_second", "peak_bytes"},
}


def dry(tmp_path, *only: str) -> tuple[int, dict]:
    status = main.main(main.Config(dry_run=True, only=only, output=tmp_path / "gpu"))
    return status, json.loads((tmp_path / "gpu" / "results.json").read_text())


@pytest.mark.parametrize("compiler", ["left out", pytest.param("run", marks=pytest.mark.slow)])
def test_every_benchmark_runs_and_is_written(tmp_path, monkeypatch, compiler):
    asked = []
    if compiler == "left out":
        monkeypatch.setattr(step_part, "compile_layers", lambda model, backend: asked.append(model))
    status, results = dry(tmp_path, *KEYS)
    assert status == 0
    assert len(asked) == (2 if compiler == "left out" else 0)
    assert set(results) == {"machine", "commit", "minutes", "dry_run", "parts"}
    assert set(results["machine"]["versions"]) == set(machine.PACKAGES)
    assert list(results["parts"]) == list(KEYS)
    table = (tmp_path / "gpu" / "table.md").read_text()
    for name, part in results["parts"].items():
        assert part["status"] == "ok"
        for row in part["rows"]:
            assert row.keys() >= KEYS[name]
            assert "left_out" in row or row.keys() >= MEASURED[name]
        assert any("ms" in row for row in part["rows"])
        assert f"| {name} | ok |" in table
    assert "| gakd auto |" in table
    assert "| naive |" in table
    assert (tmp_path / "gpu" / "plot.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_tests_of_the_card_run_on_a_cpu(tmp_path):
    status, results = dry(tmp_path, "tests")
    rows = results["parts"]["tests"]["rows"]
    assert [row for row in rows if "error" in row] == []
    assert status == 0
    files = {row["test"].split("::")[0] for row in rows}
    assert files == {path.removeprefix("tests/gpu/") for path in check_part.FILES}
    assert any("test_two_steps[gakd]" in row["test"] for row in rows)


def test_without_a_card_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main.main(main.Config(output=tmp_path)) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert main.main(main.Config(dry_run=True, only=("token", "tokens"), output=tmp_path)) == 2
    assert "got tokens" in capsys.readouterr().err


def test_a_part_that_raises_is_the_only_one_that_fails(tmp_path, monkeypatch):
    def broken(setting: Setting) -> None:
        setting.report(
            {
                "width": 1,
                "numbers": "fp32",
                "divergence": "none",
                "way": "first",
                "ms": 1.0,
                "to_floor": 1.0,
                "tflops": 1.0,
            }
        )
        raise ValueError("no such card\nmore")

    monkeypatch.setitem(parts.PARTS, "token", (broken, 1.0))
    status, results = dry(tmp_path, "token", "generation")
    assert status == 1
    assert {name: part["status"] for name, part in results["parts"].items()} == {"token": "failed", "generation": "ok"}
    assert [row.get("ms", row.get("error")) for row in results["parts"]["token"]["rows"]] == [
        1.0,
        "ValueError: no such card",
    ]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.abort()", "its process ended with status -6"),
        ("import time; time.sleep(60)", "ended from outside after 1 s"),
    ],
)
def test_a_process_that_dies_or_is_late_keeps_what_it_wrote(tmp_path, monkeypatch, code, why):
    monkeypatch.setattr(parts, "GRACE_SECONDS", 0.5)
    lines = tmp_path / "token.jsonl"
    lines.write_text(json.dumps({"way": "gakd auto", "ms": 2.0}) + "\n")
    parts.run_there([sys.executable, "-c", code], "token", lines, 0.7)
    assert parts.result_of(lines) == {
        "status": "failed", "seconds": None, "rows": [{"way": "gakd auto", "ms": 2.0}, {"error": why}]
    }  # fmt: skip


def test_a_peer_that_fails_does_not_fail_the_run(tmp_path):
    lines = tmp_path / "token.jsonl"
    for row, status in (({"peer": True, "error": "no"}, "ok"), ({"peer": False, "error": "no"}, "failed")):
        lines.write_text("\n".join(json.dumps(one) for one in (row, {"ended_after": 1.0})))
        assert parts.result_of(lines)["status"] == status


def test_no_time_leaves_parts_out_and_says_so(tmp_path):
    status = main.main(main.Config(minutes=0.3, dry_run=True, only=("token", "step"), output=tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert status == 0
    assert [part["rows"] for part in results["parts"].values()] == [[{"left_out": "no time left"}]] * 2
    assert "| step | left out |" in (tmp_path / "table.md").read_text()


def test_shares_add_up_to_the_time_that_is_left():
    names, left = list(parts.PARTS), 600.0
    for name in names:
        seconds = parts.share_of(name, names, left)
        assert 0 < seconds <= left
        left -= seconds
    assert left == pytest.approx(0)
    assert parts.share_of("generation", ["generation"], 100) == 100


def test_a_wrong_peer_is_not_timed(monkeypatch):
    def wrong(rows):
        right = token_ways.naive(rows)
        return lambda: 1.5 * right()

    ways = [token_ways.Way("gakd eager", token_ways.gakd("eager"), peer=False), token_ways.Way("wrong", wrong)]
    monkeypatch.setattr(token_part, "ways", lambda device: ways)
    found = []
    token_part.run(Setting(torch.device("cpu"), TINY, Deadline(60), found.append))
    own = [row for row in found if row["way"] == "wrong"]
    assert len(own) == 6
    assert all(row["error"] == "another result than gakd's: not timed" and "ms" not in row for row in own)
    assert all("ms" in row for row in found if row["way"] == "gakd eager")


def test_out_of_memory_is_a_cell(monkeypatch):
    def large(rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    ways = [token_ways.Way("gakd eager", token_ways.gakd("eager"), peer=False), token_ways.Way("large", large)]
    monkeypatch.setattr(token_part, "ways", lambda device: ways)
    found = []
    token_part.run(Setting(torch.device("cpu"), TINY, Deadline(60), found.append))
    assert {row["left_out"] for row in found if row["way"] == "large"} == {"out of memory"}


@pytest.mark.parametrize(
    ("card", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165), ("Tesla T4", None),
    ],
)  # fmt: skip
def test_a_cards_peak_goes_by_its_name(card, teraflops):
    assert machine.bf16_peak(card) == (None if teraflops is None else teraflops * 1e12)


def test_a_cut_run_of_tests_keeps_those_that_are_done(tmp_path):
    (tmp_path / "test_own.py").write_text(
        "import pytest, os\ndef test_good(): pass\ndef test_bad(): assert 1 == 2, 'apart'\n"
        "def test_skipped(): pytest.skip('no card')\n@pytest.fixture\ndef missing(): raise OSError('gone')\n"
        "def test_errs(missing): pass\ndef test_dies(): os.abort()\n"
    )
    lines = tmp_path / "lines.jsonl"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.gpu.recorder",
        "test_own.py",
    ]
    environment = os.environ | {recorder.LINES: str(lines), "PYTHONPATH": str(check_part.ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert all(row.pop("seconds") >= 0 for row in rows)
    assert rows == [
        {"test": "test_own.py::test_good"},
        {"test": "test_own.py::test_bad", "error": "AssertionError: apart"},
        {"test": "test_own.py::test_skipped", "left_out": "no card"},
        {"test": "test_own.py::test_errs", "error": "OSError: gone"},
    ]


def test_tests_that_are_late_are_left_out_and_the_others_kept(monkeypatch):
    def late(command, env, **_):
        with open(env[recorder.LINES], "a") as file:
            file.write('{"test": "one", "seconds": 1.0}\n')
        raise subprocess.TimeoutExpired(command, 1.0)

    monkeypatch.setattr(check_part.subprocess, "run", late)
    found = []
    check_part.run(Setting(torch.device("cpu"), TINY, Deadline(1), found.append))
    assert sorted(found, key=str) == [
        {"test": "one", "seconds": 1.0},
        {"test": "the others", "left_out": "no time left: `python -m pytest tests/gpu` has no limit"},
    ]
