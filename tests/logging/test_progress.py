"""The metrics file and the pace."""

from __future__ import annotations

import csv
import functools
import re

import pytest
from rich.text import Text

from gakd.errors import InputError
from gakd.logging import MetricsLog, Pace, ProgressView


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_may_come_late_and_rows_after_a_resume_are_run_again(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    log.append(1, {"loss": 2.5})
    log.append(2, {"loss": 1 / 3, "adversarial": 0.7})
    log.append(2, {"valid/reverse_kl": 1.25})
    log.append(3, {"loss": 0.1})
    assert read(path)[1] == {"step": "2", "loss": "0.333333", "adversarial": "0.7", "valid/reverse_kl": ""}
    resumed = MetricsLog(path, resume_at=2)
    resumed.append(3, {"loss": 0.2})
    assert [(row["step"], row["loss"]) for row in read(path)] == [
        ("1", "2.5"),
        ("2", "0.333333"),
        ("2", ""),
        ("3", "0.2"),
    ]


def test_a_row_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n12,0.25\n1")
    MetricsLog(path, resume_at=12)
    assert [row["step"] for row in read(path)] == ["1", "12"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "its first line names no column step"),
        ("1,0.5\n2,0.25\n", "its first line names no column step"),
        ("step,loss\n1,0.5\n2,\0\0\0\n", "could not convert string to float"),
        ("step,loss\n\0,0.5\n", "invalid literal for int"),
        ("step,loss\n1,0.5,7\n", "the row of step '1' has more or fewer cells"),
        ("step,loss\n1\n", "the row of step '1' has more or fewer cells"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, text, reason):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"metrics.csv is damaged .*{reason}.*put back a copy of it, or remove it"):
        MetricsLog(path, resume_at=2)
    assert path.read_text() == text
    path.unlink()
    MetricsLog(path, resume_at=2).append(3, {"loss": 1.0})
    assert [row["step"] for row in read(path)] == ["3"]


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsLog(path).append(1, {"loss": 1.0})
    MetricsLog(path)
    assert read(path) == []


def test_pace_counts_from_the_second_step_of_this_process(monkeypatch):
    clock = iter([0.0, 100.0, 110.0, 110.0])
    monkeypatch.setattr("gakd.logging.progress.time.perf_counter", lambda: next(clock))
    pace = Pace(total=10)
    pace.advance(999)  # ends at 100: the slow first step
    pace.advance(50)
    assert pace.tokens_per_second() == 5.0
    assert pace.seconds_left(step=6) == 40.0


def test_without_a_terminal_progress_is_plain_lines(capsys):
    view = ProgressView(total=2, start=0, shown=True, every=0.0)
    view.update(1, 100, {"cross_entropy": 2.0, "reverse_kl": 1.5})
    view.update(2, 100, {"cross_entropy": 1.0, "reverse_kl": 0.5})
    view.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 1/2 CE 2 RKL 1.5 |")
    assert "tok/s, 0:00 left" in lines[1]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_fits_80_columns_with_whole_terms(terminal, monkeypatch, capsys):
    import rich.console

    monkeypatch.setattr(
        "gakd.logging.progress.Console", functools.partial(rich.console.Console, force_terminal=terminal, width=80)
    )
    monkeypatch.setattr("gakd.logging.progress._peak_memory", lambda: 70.7e9)
    monkeypatch.setattr(Pace, "tokens_per_second", lambda self: 12_345.0)
    monkeypatch.setattr(Pace, "seconds_left", lambda self, step: 6003.0)
    view = ProgressView(total=20_000, start=0, shown=True, every=0.0)
    names = ("cross_entropy", "reverse_kl", "adversarial", "discriminator", "discriminator_accuracy", "gradient_norm")
    for step in (11_999, 12_000):
        view.update(step, 123_456, dict.fromkeys(names, 0.000123456))
    view.close()
    text = Text.from_ansi(capsys.readouterr().out.replace("\r", "\n")).plain
    lines = [line.rstrip() for line in text.splitlines() if "12000/20000" in line]
    assert lines
    for line in lines:
        assert len(line) <= 80
        assert re.search(r"CE 0\.000123 ((\w+|D acc) 0\.000123 )*\| 12,345 tok/s, 100:03 left \| 70\.7 GB", line)
