"""A suite of sets: how it is named, its scores by an independent count, its table, and the file it goes on from."""

from __future__ import annotations

import io
import json
import os
import re
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from gakd.data import DataConfig, DataError, Example, Row
from gakd.errors import InputError
from gakd.evaluation import Evaluation, SuiteResults, load_suite, parse_suite, suite_scores, suite_table
from tests import tiny


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "dolly,self-inst,vicuna,sinst,uinst",
            {name: name for name in ("dolly", "self-inst", "vicuna", "sinst", "uinst")},
        ),
        ("dolly=/data/dolly_eval.jsonl, vicuna", {"dolly": "/data/dolly_eval.jsonl", "vicuna": "vicuna"}),
        ("/data/own.jsonl,rows/", {"own": "/data/own.jsonl", "rows": "rows/"}),
        ("owner/set-1.5,/odd=folder/x.json", {"set-1.5": "owner/set-1.5", "x": "/odd=folder/x.json"}),
    ],
)
def test_a_suite_names_its_sets(text, expected):
    assert parse_suite(text) == expected
    assert list(parse_suite(text)) == list(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"an empty name in the suite '': give names, files or name=file with commas between"),
        ("dolly,,vicuna", "an empty name in the suite 'dolly,,vicuna'"),
        ("own=", "an empty name in the suite 'own='"),
        ("dolly,vicuna,dolly", "dolly comes 2 times .* each set counts once: give every set one name"),
        ("a/rows.jsonl,b/rows.jsonl", "rows comes 2 times"),
        ("one=rows.jsonl,two=rows.jsonl", r"rows\.jsonl comes 2 times"),
    ],
)
def test_what_names_no_sets_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_suite(text)


def write_rows(path: Path, *outputs: str | list[str]) -> Path:
    rows = [{"instruction": f"Say {index}.", "output": output} for index, output in enumerate(outputs)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_taken_whole_and_an_unknown_name_is_refused(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", *map(str, range(40)))
    sets = load_suite({"own": str(file)}, DataConfig(), tiny.tokenizer())
    assert [example.row.responses[0] for example in sets["own"]] == [str(index) for index in range(40)]
    assert len(load_suite({"own": str(file)}, DataConfig(), tiny.tokenizer(), max_examples=7)["own"]) == 7
    with pytest.raises(
        DataError, match="no dataset 'dollly', did you mean 'dolly'\\?: give docstrings, dolly, self-inst"
    ):
        load_suite({"own": str(file), "dollly": "dollly"}, DataConfig(), tiny.tokenizer())


def example(*references: str) -> Example:
    return Example([1], [2], Row("?", "", references))


def words(count: int) -> str:
    return "  word\n" * count


# Short beside long references, one at the bound, and a set without a long one.
SETS = {
    "one": [example(words(5)), example(words(4)), example(words(9), words(5), words(6)), example(words(9), "no")],
    "two": [example("no")],
    "three": [example(words(7)), example(words(2))],
}
# seed -> prompt
SCORES = {
    "one": [[10.0, 20.0, 30.0, 40.0], [11.0, 22.0, 33.0, 44.0], [1.0, 2.0, 3.0, 4.0]],
    "two": [[50.0], [60.0], [70.0]],
    "three": [[5.0, 15.0], [6.0, 18.0], [7.0, 1.0]],
}


def evaluation_of(name: str, factor: float = 1.0) -> Evaluation:
    of_prompts = [[factor * score for score in of_seed] for of_seed in SCORES[name]]
    by_seed = [sum(of_seed) / len(of_seed) for of_seed in of_prompts]
    return Evaluation(1.0, by_seed={"rouge_l": by_seed}, rouge_l_by_prompt=of_prompts, seeds=[1, 2, 3])


def test_scores_by_hand():
    found = suite_scores({name: evaluation_of(name) for name in SETS}, SETS, long_words=5)
    assert found.sets["one"].by_seed == [25.0, 27.5, 2.5]
    assert found.average.by_seed == pytest.approx([(25 + 50 + 10) / 3, (27.5 + 60 + 12) / 3, (2.5 + 70 + 4) / 3])
    # Prompts one and three of the first set, and one of the last: each prompt counts once, whatever its set.
    assert found.long is not None
    assert found.long.by_seed == pytest.approx([(10 + 30 + 5) / 3, (11 + 33 + 6) / 3, (1 + 3 + 7) / 3])
    assert found.long.mean == pytest.approx(sum(found.long.by_seed) / 3)
    assert found.long.std == pytest.approx(statistics.stdev(found.long.by_seed))
    assert suite_scores({name: evaluation_of(name) for name in SETS}, SETS, long_words=8).long is None
    assert SuiteResults(None, {}, (), SETS, 5).long_prompts() == {"one": 2, "two": 0, "three": 1}
    with pytest.raises(InputError, match="so many words, got 0: give a number above 0"):
        SuiteResults(None, {}, (), SETS, 0)


def rendered(results: SuiteResults, *checkpoints: str, width: int = 100) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(suite_table(results, checkpoints, title="Title"))
    assert all(len(line) <= width for line in file.getvalue().splitlines())
    return file.getvalue()


def test_the_table_has_a_row_a_checkpoint_and_a_column_a_set():
    results = SuiteResults(None, {}, (), SETS, 5)
    for name in SETS:
        results.add("runs/[a]", name, evaluation_of(name))
        results.add("b", name, evaluation_of(name, 2))
    lines = [line.split() for line in rendered(results, "runs/[a]", "b").splitlines()]
    assert ["one", "two", "three", "long"] in lines
    assert ["checkpoint", "(4)", "(1)", "(2)", "average", "(3)"] in lines
    assert ["runs/[a]", "18.33", "60.00", "8.67", "29.00", "11.78"] in lines
    assert ["b", "36.67", "120.00", "17.33", "58.00", "23.56"] in lines
    assert ["±13.77", "±10.00", "±4.16", "±3.88", "±7.07"] in lines
    assert "reference has 5 words or more" in " ".join(word for line in lines for word in line)
    many = {f"a-set-of-a-long-name-{index}": SETS["one"] for index in range(7)}
    wide = SuiteResults(None, {}, (), many, 9000)
    for name in many:
        wide.add("x", name, evaluation_of("one"))
    row = re.search(r"^ *x .*", rendered(wide, "x"), re.MULTILINE)
    assert row is not None
    assert row[0].split() == ["x", *["18.33"] * 8, "–"]


CONFIG = {"seeds": [1, 2, 3], "students": ["a"], "output": Path("x")}


def results_in(path: Path, sets: dict[str, list[Example]] = SETS, **changes) -> SuiteResults:
    return SuiteResults(path, CONFIG | changes, ("students", "output"), sets, 5)


def test_the_file_is_gone_on_from(tmp_path):
    path = tmp_path / "new" / "suite.json"
    first = results_in(path)
    assert first.left("a") == ["one", "two", "three"]
    first.add("a", "two", evaluation_of("two"))
    half = json.loads(path.read_text())
    assert half["scores"] == {}
    assert half["sets"]["one"]["prompts"] == 4
    assert half["sets"]["one"]["long"] == 2

    second = results_in(path, students=["a", "b"], output=Path("y"))
    assert second.left("a") == ["one", "three"]
    assert second.left("b") == ["one", "two", "three"]
    second.add("a", "one", evaluation_of("one"))
    second.add("a", "three", evaluation_of("three"))
    whole = json.loads(path.read_text())
    scores = whole["scores"]["a"]
    assert scores["sets"]["one"] == {
        "mean": pytest.approx(18.3333333),
        "std": pytest.approx(13.768926),
        "by_seed": [25, 27.5, 2.5],
    }
    assert scores["long"]["by_seed"] == pytest.approx([15, 50 / 3, 11 / 3])
    assert results_in(path).scores() == second.scores()
    assert SuiteResults(path, CONFIG, ("students", "output"), SETS, 8).scores()["a"].long is None
    assert json.loads(path.read_text())["scores"]["a"]["long"] is None

    changed = SETS | {"two": [example("yes")]}
    assert results_in(path, changed).left("a") == ["two"]


def test_a_checkpoint_that_was_trained_again_is_evaluated_again(tmp_path):
    folder = tiny.save(tmp_path / "student", tiny.model(seed=0), tiny.tokenizer())
    path, checkpoint = tmp_path / "suite.json", str(folder)
    results_in(path).add(checkpoint, "one", evaluation_of("one"))
    assert results_in(path).left(checkpoint) == ["two", "three"]
    os.utime(folder / "model.safetensors", ns=(1, 1))  # touched, its contents are the same
    assert results_in(path).left(checkpoint) == ["two", "three"]
    kept = path.read_bytes()
    tiny.save(folder, tiny.model(seed=1), tiny.tokenizer())
    assert results_in(path).left(checkpoint) == ["one", "two", "three"]
    path.write_bytes(kept)
    folder.rename(tmp_path / "elsewhere")  # nothing to evaluate again, and nothing lost
    assert results_in(path).left(checkpoint) == ["two", "three"]


def test_other_settings_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "suite.json"
    results_in(path).add("a", "one", evaluation_of("one"))
    before = path.read_bytes()
    with pytest.raises(
        InputError, match=r"suite\.json was begun with other settings: seeds was \[1, 2, 3\], is \[1\]. Use"
    ):
        results_in(path, seeds=[1])
    assert path.read_bytes() == before
    for text in ("{}", "[1]", "not JSON"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"suite\.json holds no results of a suite, so something else wrote it"):
            results_in(path)
        assert path.read_text() == text
