"""A run knows its data: what has changed between its begin and its resumption is refused by name, its date is kept."""

from __future__ import annotations

import json
import shutil

import pytest

from gakd.errors import InputError
from gakd.models import load_tokenizer
from tests.recipe_runs import arguments, assert_identical, make_material, run_here

DATED = "{% if messages[0].role != 'system' %}<|im_start|>system\n{{ strftime_now('%d %B %Y') }}<|im_end|>\n{% endif %}"


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("known"))


def begun(material, folder):
    """A run of its own copy of the material, in which the template sets the date."""
    own = shutil.copytree(material, folder / "own")
    for name in ("student", "teacher"):
        words = load_tokenizer(str(own / name))
        words.chat_template = DATED + words.chat_template
        words.save_pretrained(own / name)
    flags = arguments(
        own, folder / "run", "--steps", "4", "--evaluate-every", "0", "--max-prompt-length", "90", "--max-length", "128"
    )
    run_here("gakd", *flags, "--date", "2026-11-27")
    return own, flags


def test_what_has_changed_is_refused_by_name(material, tmp_path):
    own, flags = begun(material, tmp_path)
    resumed = [*flags, "--date", "2026-11-27", "--resume"]
    run_here("gakd", *resumed)

    rows = own / "data" / "train.jsonl"
    before = rows.read_text()
    lines = before.splitlines(keepends=True)
    for changed in (lines[1::-1] + lines[2:], [lines[0].replace("<", "<!"), *lines[1:]], lines[:-1]):
        rows.write_text("".join(changed))
        with pytest.raises(InputError, match=r"begun with other data.* Changed: the training examples"):
            run_here("gakd", *resumed)
    rows.write_text(before)
    run_here("gakd", *resumed)

    for name in ("student", "teacher"):
        words = load_tokenizer(str(own / name))
        words.chat_template = words.chat_template.replace("system\n", "system: ")
        words.save_pretrained(own / name)
    with pytest.raises(InputError, match=r"the training examples, .*the test examples, the chat template"):
        run_here("gakd", *resumed)


def test_another_date_is_refused_and_none_is_the_runs_own(material, tmp_path):
    _, flags = begun(material, tmp_path)
    with pytest.raises(InputError, match=r"data\.date was 2026-11-27, is 2026-11-28"):
        run_here("gakd", *flags, "--date", "2026-11-28", "--resume")
    run_here("gakd", *flags, "--resume")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["date"] == "2026-11-27"
    assert json.loads((tmp_path / "run" / "data.json").read_text())["date"] == "2026-11-27"


def test_a_run_goes_on_after_midnight_with_the_same_bits_and_with_its_cache(material, tmp_path, monkeypatch):
    """Begun on one day and resumed on another, with a cache of the first day: as a run of the first day alone."""
    import datetime

    from gakd.cli.recipe_files import load_recipe
    from gakd.data import dates
    from tests.recipe_table import ROOT

    class OtherDay(datetime.date):
        @classmethod
        def today(cls):
            return cls(2026, 11, 28)

    own, flags = begun(material, tmp_path)
    tool = load_recipe(ROOT / "recipes" / "tools" / "cache_teacher.py")
    from gakd.data import DataConfig

    data = DataConfig(str(own / "data"), max_length=128, max_prompt_length=90, date="2026-11-27")
    tool.main(tool.Config(str(own / "teacher"), tmp_path / "cache", data=data))
    cached = [*flags, "--teacher-cache", str(tmp_path / "cache"), "--output-dir", str(tmp_path / "cached")]
    monkeypatch.setattr(dates, "Date", OtherDay)
    run_here("gakd", *cached)
    assert json.loads((tmp_path / "cached" / "config.json").read_text())["data"]["date"] == "2026-11-27"
    shutil.rmtree(tmp_path / "cached")

    halfway = tmp_path / "halfway"
    shutil.copytree(tmp_path / "run", halfway)
    last = max((halfway / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    shutil.rmtree(last)
    run_here("gakd", *flags, "--output-dir", str(halfway), "--resume")
    assert_identical(halfway, tmp_path / "run")
