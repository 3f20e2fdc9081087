"""`gakd report`: what it reads, what it compares, and that nothing in a folder makes it fail."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import statistics
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote

import pytest

from gakd.cli.report import ReportConfig, main
from gakd.data import DataConfig, load_data
from gakd.errors import InputError
from gakd.models import load_tokenizer
from gakd.report.game import healths, verdict_of
from gakd.report.groups import curve, group_warnings, grouped, settings
from gakd.report.read import read_run
from gakd.report.samples import samples
from gakd.report.tables import objective_rows, run_rows, scores
from tests.recipe_runs import arguments, make_material, run_here
from tests.report_runs import PROMPTS, write_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        write_run(root / f"{recipe}-s{seed}", recipe, seed)
        for recipe in ("gakd", "reverse_kl", "sft")
        for seed in (1, 2)
    ]


@pytest.fixture
def groups(folders):
    return grouped([read_run(folder) for folder in folders])


def written(folder: Path, *runs: Path, **flags) -> str:
    main(ReportConfig(runs, folder / "report.html", **flags))
    return (folder / "report.html").read_text(encoding="utf-8")


def cells(folder: Path, column: str) -> dict[int, float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)}


def test_runs_that_differ_only_in_the_seed_are_one_group(groups, folders):
    assert [group.label for group in groups] == ["gakd", "reverse_kl", "sft"]
    assert [[run.seed for run in group.runs] for group in groups] == [[1, 2]] * 3
    assert [run.folder for group in groups for run in group.runs] == folders
    assert group_warnings(groups) == []


def test_another_setting_or_another_recipe_of_the_same_flags_is_another_group(folders):
    run = read_run(folders[0])
    rate = replace(run, folder=Path("rate"), config=run.config | {"run.learning_rate": 1.0})
    recipe = replace(run, folder=Path("recipe"), recipe="gakd_hinge")
    kept = replace(
        run, folder=Path("kept"), config=run.config | {"run.save_every": 7, "run.seed": 9, "run.push_to_hub": "me/a"}
    )
    groups = grouped([run, rate, recipe, kept])
    assert [[member.folder.name for member in group.runs] for group in groups] == [
        ["gakd-s1", "kept"],
        ["rate"],
        ["recipe"],
    ]
    assert settings(groups) == {"recipe": ["gakd", "gakd", "gakd_hinge"], "run.learning_rate": [None, 1.0, None]}


def test_runs_that_did_not_say_their_recipe_are_told_apart_by_their_losses(folders):
    ours, other = (replace(read_run(folder), recipe=None) for folder in (folders[0], folders[2]))
    assert len(grouped([ours, replace(other, config=ours.config)])) == 2
    assert len(grouped([ours, replace(ours, folder=Path("again"), config=ours.config | {"run.seed": 5})])) == 1


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a/seed-1", "a/seed-2"], ["gakd"]), (["x/run-1", "y/run-2"], ["gakd"]),
        (["bias1", "bias2"], ["bias"]), (["gakd/seed_1", "gakd/seed_2", "sft"], ["gakd", "sft"]), (["one"], ["one"]),
    ],
)  # fmt: skip
def test_labels(names, labels, folders, tmp_path):
    run = read_run(folders[0])
    runs = [
        replace(
            run,
            folder=tmp_path / name,
            recipe="sft" if name == "sft" else "gakd",
            config=run.config | {"run.seed": index},
        )
        for index, name in enumerate(names)
    ]
    assert [group.label for group in grouped(runs)] == labels


def test_a_curve_is_mean_and_range_over_seeds(groups, folders):
    first, second = (cells(folder, "reverse_kl") for folder in folders[:2])
    found = curve(groups[0], "reverse_kl")
    assert (found.steps, found.seeds, found.stride) == (sorted(first), 2, 1)
    assert found.mean == pytest.approx([(first[step] + second[step]) / 2 for step in found.steps])
    assert found.low == [min(first[step], second[step]) for step in found.steps]
    assert found.high == [max(first[step], second[step]) for step in found.steps]
    assert curve(groups[2], "reverse_kl") is None


def test_a_long_curve_is_averaged_within_each_seed(tmp_path):
    folders = [write_run(tmp_path / f"s{seed}", "sft", seed, steps=400) for seed in (1, 2)]
    found = curve(grouped([read_run(folder) for folder in folders])[0], "cross_entropy")
    first, second = (list(cells(folder, "cross_entropy").values()) for folder in folders)
    assert (found.stride, len(found.steps), found.steps[:2]) == (3, 134, [2, 5])
    means = [statistics.fmean(values[3:6]) for values in (first, second)]
    assert (found.low[1], found.high[1]) == pytest.approx((min(means), max(means)))
    assert found.mean[-1] == pytest.approx((first[-1] + second[-1]) / 2)


def test_an_unfinished_run_does_not_bend_the_curve_of_its_group(folders, tmp_path):
    short = write_run(tmp_path / "short", "gakd", 3, steps=10, planned=40, after=False)
    group = grouped([read_run(folder) for folder in (*folders[:2], short)])[0]
    assert len(group.runs) == 3
    assert curve(group, "cross_entropy").seeds == 2
    (warning,) = group_warnings([group])
    assert "not in the curves of" in warning
    alone = grouped([read_run(short)])[0]
    assert len(curve(alone, "cross_entropy").steps) == 10


def test_equal_seeds_are_no_measure_of_chance(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "copy")
    (warning,) = group_warnings(grouped([read_run(folders[0]), read_run(tmp_path / "copy")]))
    assert "same seed 1" in warning


def test_scores_are_means_with_range_change_and_best(groups):
    measures, rows = scores(groups)
    assert [row.label for row in rows] == ["teacher", "before training", "gakd", "reverse_kl", "sft"]
    column = [measure.field for measure in measures].index("cross_entropy")
    found = [row.cells[column] for row in rows]
    # 1.62, 1.70 and 1.66, and 0.01 a seed.
    assert [cell.value for cell in found] == ["1.400", "2.900", "1.635", "1.715", "1.675"]
    assert [cell.spread for cell in found[2:]] == ["1.630 to 1.640", "1.710 to 1.720", "1.670 to 1.680"]
    assert [(cell.change, cell.verdict) for cell in found[2:]] == [("", ""), ("+0.080", "worse"), ("+0.040", "worse")]
    assert [cell.best for cell in found] == [False, False, True, False, False]
    rouge = [row.cells[[measure.field for measure in measures].index("rouge_l")] for row in rows]
    assert [(cell.value, cell.best) for cell in rouge[2:]] == [("23.65", True), ("22.85", False), ("23.25", False)]
    length = [row.cells[[measure.field for measure in measures].index("response_length")] for row in rows]
    assert not any(cell.best or cell.verdict for cell in length)
    own = [row.cells[[measure.field for measure in measures].index("forward_kl")] for row in rows]
    assert [cell.value for cell in own] == ["0.000", "1.500", "0.235", "0.315", "–"]


def test_a_difference_within_the_range_of_seeds_is_not_called_better(groups):
    first, second = groups[0], replace(groups[1], runs=groups[0].runs[:1] + groups[1].runs[:1])
    measures, rows = scores([first, second])
    found = rows[-1].cells[[measure.field for measure in measures].index("cross_entropy")]
    assert (found.value, found.spread, found.change, found.verdict) == ("1.670", "1.630 to 1.710", "+0.035", "overlaps")
    alone = replace(second, runs=second.runs[:1])
    assert scores([first, alone])[1][-1].cells[0].verdict == "better"


def spells(accuracies: list[float], patience: int = 50) -> int:
    """Runs of one pinned value that are long enough."""
    return sum(key in (0.5, 1.0) and len(list(members)) >= patience for key, members in groupby(accuracies))


@pytest.mark.parametrize(
    ("accuracies", "says"),
    [
        ([1.0] * 49 + [0.9] * 51, "Alive"), ([0.9] * 7 + [1.0] * 50 + [0.8], "Lost. At step 57: the game has been won by"),
        ([0.5] * 60, "Lost. At step 50: the game has been undecided"), ([1.0, 0.5] * 60, "Alive"),
        ([1.0] * 49, "Too short to judge: 49 steps"),
        ([1.0] * 50 + [0.7] + [0.5] * 50, "2 such spells in all, the last at step 101"),
    ],
)  # fmt: skip
def test_the_verdict_is_by_the_rule_that_a_run_warns_by(accuracies, says):
    lost, sentence = verdict_of(list(range(1, len(accuracies) + 1)), accuracies)
    assert lost == (spells(accuracies) > 0)
    assert says in sentence


def test_the_health_of_a_game(tmp_path, folders):
    lost = write_run(tmp_path / "lost", "gakd", 1, steps=80, accuracy=1.0)
    groups = grouped([read_run(lost), read_run(folders[0]), read_run(folders[4])])
    first, second = healths(groups)
    assert (first.steps, first.always_right, first.guessing, first.accuracy, first.lost) == (78, 1.0, 0.0, 1.0, True)
    margins, accuracies = (list(cells(folders[0], f"discriminator_{name}").values()) for name in ("margin", "accuracy"))
    assert second.margin == pytest.approx(statistics.fmean(margins))
    assert second.guessing == accuracies.count(0.5) / len(accuracies)
    assert "Too short" in second.verdict


def test_samples_stand_beside_their_prompt(groups):
    first, second = samples(groups, 2)
    assert (first.prompt, second.prompt) == (PROMPTS[0][0], "\n\n".join(PROMPTS[1][:2]))
    assert [(answer.who, answer.runs) for answer in first.answers[:3]] == [
        ("reference", []), ("teacher", ["gakd", "reverse_kl"]), ("before", ["all runs"]),
    ]  # fmt: skip
    assert [(answer.runs, answer.text) for answer in first.answers[3:]] == [
        ([f"{recipe}-s{seed}"], f"{recipe} {seed}: {PROMPTS[0][2]}")
        for recipe in ("gakd", "reverse_kl", "sft") for seed in (1, 2)
    ]  # fmt: skip


def test_answers_to_other_prompts_are_not_mixed(folders, tmp_path):
    other = write_run(tmp_path / "other", "gakd", 3, prompts=(("Another?", "", "Yes."),))
    found = samples(grouped([read_run(folders[0]), read_run(other)]), 9)
    assert [sample.prompt for sample in found][-1] == "Another?"
    assert [answer.text for answer in found[-1].answers] == ["Yes.", "Yes.", "the the the", "gakd 3: Yes."]


def test_runs_that_kept_no_prompts_show_their_answers(folders, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(folders[0], old)
    start = json.loads((old / "before.json").read_text())
    (old / "before.json").write_text(json.dumps({name: start[name] for name in ("student", "teacher")}))
    first, *_ = samples(grouped([read_run(old)]), 1)
    assert (first.known, first.prompt) == (False, "Test example 1")
    assert [answer.who for answer in first.answers] == ["teacher", "before", "after"]


def test_wall_time_is_by_the_files_and_only_where_they_can_be_right(folders, tmp_path):
    real, copy = tmp_path / "real", tmp_path / "copy"
    for folder in (real, copy):
        shutil.copytree(folders[0], folder)
    for index, name in enumerate(("config.json", "before.json", "metrics.csv", "after.json")):
        os.utime(real / name, (1e9, 1e9 + 1200 * index))
        os.utime(copy / name, (1e9, 1e9 + 0.001 * index))  # 40 steps of 4000 tokens at 20100 a second take 8 seconds
    assert read_run(real).wall_seconds == 3600
    assert read_run(copy).wall_seconds is None
    assert [row.wall for row in run_rows(grouped([read_run(real), read_run(copy)]), tmp_path)] == ["1 h 00 min", "–"]


DAMAGE = {
    "config.json": (b"{", "config.json cannot be read"), "before.json": (b"[1]", "holds no JSON object but a list"),
    "after.json": (b"\xff\xfe{}", "after.json cannot be read"),
    "metrics.csv": (b"loss\n1\n", "expected a metrics CSV with a column `step`"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("how", ["damaged", "empty", "gone", "a folder", "zeros"])
def test_a_damaged_file_is_a_line_of_warning(name, how, folders, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folders[0], copy)
    (copy / name).unlink()
    if how == "a folder":
        (copy / name).mkdir()
    elif how != "gone":
        (copy / name).write_bytes({"damaged": DAMAGE[name][0], "empty": b"", "zeros": b"\0" * 64}[how])
    page = written(tmp_path, copy, folders[2])
    lines = capsys.readouterr().err.splitlines()
    assert lines != []
    assert all(line.startswith(f"warning: {copy}: ") for line in lines)
    assert how != "damaged" or DAMAGE[name][1] in lines[0]
    assert 'id="warnings"' in page


@pytest.mark.parametrize(
    "scores",
    [
        '{"student": 3}',
        '{"student": {"cross_entropy": "low"}}',
        '{"student": {"cross_entropy": NaN}}',
        '{"teacher": {}}',
    ],
)
def test_scores_that_are_none_are_not_shown(scores, folders, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folders[0], copy)
    (copy / "after.json").write_text(scores)
    written(tmp_path, copy)
    assert capsys.readouterr().err == f"warning: {copy}: after.json has no scores of the student\n"


def test_a_row_that_was_cut_short_and_numbers_that_are_not_finite(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders[4], copy)
    with (copy / "metrics.csv").open("a") as file:
        file.write("41,nan,0.1,1,1,1,1,,\n42,2,0.1,inf,1,1,1,,\n43,1.2")
    run = read_run(copy)
    assert run.warnings == ["metrics.csv has 2 rows with a number that is not finite"]
    assert run.metrics["cross_entropy"][0][-2:] == [40, 42]
    assert run.step == 42


def test_an_unfinished_run_says_where_it_stands(tmp_path):
    run = read_run(write_run(tmp_path / "run", "gakd", 3, steps=10, planned=40, after=False))
    assert run.warnings == ["unfinished, at step 10 of 40: it has no after.json"]
    (row,) = run_rows(grouped([run]), tmp_path)
    assert (row.status, row.steps) == ("unfinished", "10 of 40")


def test_text_of_a_run_is_text_of_the_page(tmp_path):
    evil = "<script>document.title = 'x'</script>\x00\x1b[31m \u202egpj.exe \ud800 &amp; {{ 7 * 7 }}"
    prompts = ((f"<b>{evil}", "", f"</p>{evil}"),)
    page = written(tmp_path, write_run(tmp_path / "<img src=x>", "gakd", texts=[f"</article>{evil}"], prompts=prompts))
    assert "<script" not in page
    assert "<img" not in page
    assert (
        page.count(
            "&lt;script&gt;document.title = &#39;x&#39;&lt;/script&gt;\\x00\\x1b[31m \\u202egpj.exe \\ud800 &amp;amp; {{ 7 * 7 }}"
        )
        == 4  # prompt, reference, teacher, after
    )
    assert "&lt;img src=x&gt;" in page


def test_a_long_text_is_cut_and_says_so(tmp_path):
    run = write_run(tmp_path / "run", "gakd", texts=["y" * 2000], prompts=(("Why?", "", "z"),))
    assert f"{'y' * 1500}… (500 more characters)" in written(tmp_path, run)


def test_the_page_stands_alone(folders, tmp_path, capsys):
    page = written(tmp_path, *folders, folders[0])
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}: 6 runs in 3 groups\n"
    assert "://" not in page.replace("http://www.w3.org/", "")
    assert [word for word in ("<script", "<link", "@import", "url(http", "javascript:") if word in page] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]


@pytest.mark.parametrize("completions", [0, 1, 3])
def test_completions_are_as_many_as_asked_for(completions, folders, tmp_path):
    assert written(tmp_path, folders[0], completions=completions).count('class="sample"') == completions


def test_what_it_refuses(folders, tmp_path):
    with pytest.raises(InputError, match="expected the --output-dir of at least one run"):
        main(ReportConfig((), tmp_path / "report.html"))
    with pytest.raises(InputError, match=r"no folder .*nowhere: give the --output-dir of runs"):
        main(ReportConfig((folders[0], tmp_path / "nowhere"), tmp_path / "report.html"))
    with pytest.raises(InputError, match="is a folder: give the name of a file"):
        main(ReportConfig((folders[0],), tmp_path))
    with pytest.raises(InputError, match="--completions is -1"):
        main(ReportConfig((folders[0],), tmp_path / "report.html", -1))
    assert list(tmp_path.iterdir()) == []


def test_a_formula_and_links_to_cards_are_of_runs_that_have_them(folders, tmp_path):
    runs = tmp_path / "the runs"
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        write_run(runs / name, "gakd" if name != "c" else "sft", seed)
    (runs / "a" / "student").mkdir()
    (runs / "a" / "student" / "README.md").write_text("# a")
    (runs / "b" / "about.json").write_text(json.dumps({"objective": "0.5 * <b>term</b>"}))
    (runs / "c" / "about.json").write_text("{")
    (tmp_path / "pages").mkdir()
    page = written(tmp_path / "pages", *(runs / name for name in "abc"))
    groups = grouped([read_run(runs / name) for name in "abc"])
    assert [formula for _, _, formula in objective_rows(groups)] == ["0.5 * <b>term</b>"]
    assert "<code>0.5 * &lt;b&gt;term&lt;/b&gt;</code>" in page
    (link,) = re.findall(r'<a href="([^"#]+)">model card', page)
    assert (tmp_path / "pages" / unquote(link)).read_text() == "# a"
    assert any("about.json cannot be read" in warning for warning in groups[1].runs[0].warnings)
    older = written(tmp_path, folders[0])
    assert "Objectives" not in older
    assert "model card" not in older


def test_a_folder_that_is_no_run_is_left_out(folders, tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    written(tmp_path, folders[0], tmp_path / "notes")
    assert (
        capsys.readouterr().err
        == f"warning: {tmp_path / 'notes'}: left out, it has no config.json and no metrics.csv\n"
    )


def test_real_runs(tmp_path, capsys):
    material = make_material(tmp_path)
    flags = ("--steps", "3", "--text-examples", "2")
    for seed in ("1", "2"):
        run_here("gakd", *arguments(material, tmp_path / f"gakd-{seed}", *flags, "--seed", seed))
    run_here("sft", *arguments(material, tmp_path / "sft", *flags, recipe="sft"))
    capsys.readouterr()
    folders = [tmp_path / name for name in ("gakd-1", "gakd-2", "sft")]
    page = written(tmp_path, *folders)
    assert capsys.readouterr().err == ""
    groups = grouped([read_run(folder) for folder in folders])
    assert [(group.label, group.runs[0].recipe, len(group.runs)) for group in groups] == [
        ("gakd", "gakd", 2),
        ("sft", "sft", 1),
    ]
    assert all(run.finished and run.step == 3 and run.wall_seconds for group in groups for run in group.runs)
    rows = [json.loads(line) for line in (material / "data" / "test.jsonl").read_text().splitlines()]
    assert {(sample.prompt, sample.answers[0].text) for sample in samples(groups, 9)} <= {
        (row["instruction"], row["output"]) for row in rows
    }
    assert len(samples(groups, 9)) == 2
    cross_entropies = [
        json.loads((folder / "after.json").read_text())["student"]["cross_entropy"] for folder in folders[:2]
    ]
    assert f'<span class="value">{sum(cross_entropies) / 2:.3f}</span>' in page
    formulas = [json.loads((folder / "about.json").read_text())["objective"] for folder in (folders[0], folders[2])]
    assert objective_rows(groups) == [(0, "gakd", formulas[0]), (1, "sft", "1 * cross_entropy")]
    assert all(f"<code>{formula}</code>" in page for formula in formulas)
    words = load_tokenizer(str(material / "student"))
    data = load_data(DataConfig(str(material / "data"), max_length=96, max_prompt_length=64), words)
    read = sum(
        len(example.prompt_ids) + len(example.response_ids) - 1 for example in data.train
    )  # never the last token
    run_here("sft", *arguments(material, tmp_path / "epoch", "--steps", "8", "--text-examples", "0", recipe="sft"))
    (row,) = run_rows(grouped([read_run(tmp_path / "epoch")]), tmp_path)
    assert row.read == f"{read:,}"
