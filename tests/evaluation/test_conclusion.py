"""What a run hands to a notebook: the figure, the scores, the metrics as a table."""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

import gakd
from gakd.errors import InputError
from gakd.evaluation import Evaluation, EvaluationConfig, HeldOut, conclude, plot_metrics
from gakd.logging import MetricsLog
from tests import tiny

CSV = "step,loss,valid/reverse_kl\n1,2.5,\n2,2.25,\n2,,1.75\n3,2.125,\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "metrics.csv").write_text(CSV)
    return tmp_path


def test_a_table_has_a_row_a_step_and_the_validation_beside_it(folder):
    table = gakd.metrics(folder)
    assert list(table.columns) == ["loss", "valid/reverse_kl"]
    assert list(table.index) == [1, 2, 3]
    assert table.index.name == "step"
    np.testing.assert_array_equal(table.to_numpy(), [[2.5, np.nan], [2.25, 1.75], [2.125, np.nan]])
    assert gakd.metrics(str(folder)).equals(table)


def test_a_table_of_a_run_that_is_writing_has_its_whole_rows(folder):
    with (folder / "metrics.csv").open("a") as file:
        file.write("4,2.0")  # and no end of the line yet
    assert list(gakd.metrics(folder).index) == [1, 2, 3]


def test_a_table_has_what_the_log_was_given(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv")
    assert gakd.metrics(tmp_path).empty
    for step in (1, 2):
        log.append(step, {"loss": 1 / step})
    log.append(2, {"valid/cross_entropy": 0.125})  # a late column: the file is written anew
    table = gakd.metrics(tmp_path)
    assert table["loss"].to_dict() == {1: 1.0, 2: 0.5}
    assert table["valid/cross_entropy"].dropna().to_dict() == {2: 0.125}


def test_what_is_no_run_is_refused_in_a_line(folder, monkeypatch):
    with pytest.raises(InputError, match=r"nowhere holds no metrics.csv: give the output_dir of a run"):
        gakd.metrics(folder / "nowhere")
    (folder / "metrics.csv").write_text("step,loss\n1,2,3\n")
    with pytest.raises(InputError, match="is damaged"):
        gakd.metrics(folder)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pandas is not installed: pip install pandas"):
        gakd.metrics(folder)


def test_the_figure_is_what_the_file_shows_and_a_notebook_too(folder, tmp_path):
    figure = plot_metrics(folder / "metrics.csv", tmp_path / "curves.png")
    (tmp_path / "again.png").write_bytes(figure.png(figure.dpi))
    np.testing.assert_array_equal(imread(tmp_path / "curves.png"), imread(tmp_path / "again.png"))
    (tmp_path / "shown.png").write_bytes(figure._repr_png_())
    small, large = (imread(tmp_path / f"{name}.png").shape for name in ("shown", "curves"))
    assert small[0] / small[1] == pytest.approx(large[0] / large[1], rel=0.01)
    assert small[1] < large[1]
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.axison] == [
        "Objective", "Divergence to the teacher (validation)",
    ]  # fmt: skip


def test_without_a_path_nothing_is_written(folder):
    before = sorted(folder.iterdir())
    plot_metrics(folder / "metrics.csv")
    assert sorted(folder.iterdir()) == before


def test_a_figure_that_nobody_holds_is_gone(folder):
    from matplotlib import pyplot  # which would keep it

    figure = weakref.ref(plot_metrics(folder / "metrics.csv"))
    gc.collect()
    assert figure() is None
    assert pyplot.get_fignums() == []


def evaluation(cross_entropy: float) -> Evaluation:
    return Evaluation(cross_entropy, reverse_kl=0.5, predictions=["a"])


@pytest.mark.parametrize("main", [True, False])
def test_a_conclusion_has_the_scores_of_the_files_and_the_figure(folder, main, capsys):
    row = SimpleNamespace(instruction="ask", responses=("answer",))
    held_out = HeldOut.__new__(HeldOut)
    held_out.tokenizer, held_out.test = tiny.tokenizer(), [SimpleNamespace(row=row)]  # type: ignore[assignment]
    held_out.config = EvaluationConfig()
    held_out.after = lambda student: evaluation(1.0)  # type: ignore[method-assign]
    before = {"student": asdict(evaluation(3.0)), "teacher": asdict(evaluation(0.25))}
    found = conclude(folder, tiny.model(), held_out, before, main)
    if not main:
        assert found is None
        assert not (folder / "after.json").exists()
        return
    assert found is not None
    assert {name: one.cross_entropy for name, one in found.scores.items()} == {
        "before": 3.0, "after": 1.0, "teacher": 0.25,
    }  # fmt: skip
    assert found._repr_png_() == found.figure._repr_png_()
    assert (folder / "curves.png").exists()
    assert len(repr(found)) < 100  # a cell that ends with it does not print every text
