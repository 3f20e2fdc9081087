"""The whole study on a world of seconds: models are trained, methods run, what comes out is told; then it goes on."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModelForCausalLM

from gakd.cli.recipe_files import load_recipe
from gakd.errors import InputError, RunError
from gakd.models import load_tokenizer
from gakd.study import runs, stages
from gakd.study.config import WorldConfig
from gakd.study.knobs import knobs
from gakd.study.results import MEASURES
from gakd.study.world import World, make_material, training_flags
from tests.recipe_runs import make_material as make_recipe_material
from tests.recipe_table import ROOT


def tool() -> ModuleType:
    return load_recipe(ROOT / "recipes" / "tools" / "study.py")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    for split, rows in (("train", 48), ("valid", 6), ("test", 9)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for index in range(rows):
                words = " ".join(draw.choices(["red", "green", "blue", "grey"], k=(1, 4, 9)[index % 3]))
                file.write(json.dumps({"instruction": f"Say {index}.", "output": words}) + "\n")
            file.write(json.dumps({"instruction": "Too long.", "output": "word " * 60}) + "\n")
    return folder


def world(text: Path) -> WorldConfig:
    return WorldConfig(
        dataset=str(text), vocabulary=300, longest_prompt=16, longest_response=20, teacher_width=64, teacher_layers=1,
        teacher_epochs=1, student_layers=1, student_epochs=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(text, tmp_path_factory):
    """The tool and the configuration of a finished study."""
    module, folder = tool(), tmp_path_factory.mktemp("study") / "study"
    config = module.Config(
        output_dir=folder, methods=("gakd",), seeds=2, steps=4, batch_size=8, learning_rates=(1e-3, 3e-3),
        sampling_seeds=(1, 2), jobs=0, world=world(text),
    )  # fmt: skip
    module.main(config)
    return module, config


def test_the_world_holds_complete_texts_only(text, tmp_path):
    made, config = World(tmp_path / "world"), world(text)
    make_material(made, config)
    rows = [json.loads(line) for line in (made.data / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 48
    assert not any(row["instruction"] == "Too long." for row in rows)
    tokenizer = load_tokenizer(str(made.untrained("student")))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say 1."}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|user|>Say 1.<|assistant|>"
    assert len(tokenizer("<|user|>")["input_ids"]) == 1
    assert tokenizer.decode(tokenizer("green  grey\n\té")["input_ids"]) == "green  grey\n\té"
    with pytest.raises(InputError, match="begun with other settings: vocabulary was 300, is 301"):
        make_material(made, replace(config, vocabulary=301))


def test_the_world_keeps_what_was_said_before_and_leaves_out_what_was_cut(text, tmp_path):
    folder = shutil.copytree(text, tmp_path / "text")
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "red"), ("user", "Two?"), ("assistant", "green")]
    spoken = {"messages": [{"role": role, "content": content} for role, content in turns]}
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "Cut.", "output": "red", "finished": False}) + "\n")
        file.write(json.dumps(spoken) + "\n")
    made = World(tmp_path / "world")
    make_material(made, replace(world(folder), longest_prompt=48))
    rows = [json.loads(line) for line in (made.data / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 49
    assert spoken in rows


def test_a_given_student_keeps_the_recipes_learning_rate(tmp_path):
    """One that is at the start learns at a hundred times that of a trained one, which it would ruin."""
    made, given = World(tmp_path), World(tmp_path, "Qwen3-8B")
    assert training_flags(made, "student", 40)[6:8] == ("--learning-rate", "3e-3")
    assert "--learning-rate" not in training_flags(given, "student", 40)


def test_the_report_has_every_measure_with_intervals(study):
    _, config = study
    found = json.loads((config.output_dir / "results.json").read_text())
    assert found["reference"] == "reverse_kl"
    assert found["entries"].keys() == {"teacher", "student", "reverse_kl", "gakd"}
    game = found["entries"]["gakd"]
    assert game["seeds"] == [1, 2]
    assert {measure.name for measure in MEASURES} <= game["measures"].keys()
    assert {"rouge_l/short", "rouge_l/medium", "rouge_l/long"} <= game["differences"].keys()
    for interval in game["differences"].values():
        assert interval["low"] <= interval["estimate"] <= interval["high"]
    teacher = found["entries"]["teacher"]["measures"]
    for name in ("forward_kl", "reverse_kl", "own_reverse_kl", "sequence_kl"):
        assert teacher[name]["estimate"] == pytest.approx(0, abs=1e-5)
        assert game["measures"][name]["estimate"] > 1e-4
    # A text's cross entropy to the teacher is its entropy, at most that of 300 equal tokens, and the KL.
    of = {name: interval["estimate"] for name, interval in game["measures"].items()}
    assert of["own_entropy"] == pytest.approx(-of["teacher_log_likelihood"] - of["own_reverse_kl"], rel=1e-4)
    assert 0 < of["own_entropy"] < 1.05 * math.log(300)
    report = (config.output_dir / "report.md").read_text()
    assert "## Differences to reverse KL" in report
    assert "| GAKD |" in report
    assert "nan" not in report
    for plot in ("differences.png", "buckets.png"):
        assert (config.output_dir / plot).stat().st_size > 10_000


def test_all_runs_start_from_one_student_and_differ_by_seed(study):
    _, config = study
    folders = sorted(path.parent for path in (config.output_dir / "runs").glob("*/*/after.json"))
    # Two learning rates of each method by the seed that chooses, two reported seeds of each.
    assert len(folders) == 8
    befores = {json.dumps(json.loads((folder / "before.json").read_text())["student"]) for folder in folders}
    assert len(befores) == 1
    afters = {json.loads((folder / "after.json").read_text())["student"]["cross_entropy"] for folder in folders}
    assert len(afters) == 8
    assert AutoModelForCausalLM.from_pretrained(folders[0] / "student").config.num_hidden_layers == 1


def test_the_same_command_runs_nothing_again_and_reports_the_same(study, monkeypatch):
    module, config = study
    before = {name: (config.output_dir / name).read_text() for name in ("report.md", "results.json")}
    started: list[str] = []
    monkeypatch.setattr(runs, "execute", lambda job: started.append(job.label))
    module.main(config)
    assert started == []
    assert {name: (config.output_dir / name).read_text() for name in before} == before


def test_more_seeds_run_only_what_is_new_and_what_fails_is_left_out(study, monkeypatch):
    module, config = study
    started: list[str] = []
    monkeypatch.setattr(runs, "execute", lambda job: started.append(job.label))
    with pytest.raises(RunError, match=r"2 runs failed and are left out, the first: .*seed-3, see .*log\.txt"):
        module.main(replace(config, seeds=3))
    assert len(started) == 2
    assert all(label.endswith("seed-3") for label in started)
    assert json.loads((config.output_dir / "results.json").read_text())["entries"]["gakd"]["seeds"] == [1, 2]


def test_other_settings_need_another_folder(study):
    module, config = study
    with pytest.raises(InputError, match="begun with other settings: steps was 4, is 5"):
        module.main(replace(config, steps=5))


@pytest.mark.slow
def test_a_search_judges_on_the_validation_split_alone(study, monkeypatch):
    module, config = study
    names = ("reverse_kl", "own_text", "logits_0.3", "own_text_0.3")
    monkeypatch.setattr(stages, "knobs", lambda *sizes: tuple(row for row in knobs(*sizes) if row.name in names))
    module.main(replace(config, search=True, methods=(), ablation_seeds=2))
    folder = config.output_dir / "search"
    found = json.loads((folder / "results.json").read_text())["entries"]
    assert {*found} == {*names}  # and not the teacher, which is measured on the test split
    scores = json.loads((folder / "logits_0.3" / "lr-0.003-seed-1" / "scores.json").read_text())
    rows = {
        split: len((config.output_dir / "world" / "data" / f"{split}.jsonl").read_text().splitlines())
        for split in ("valid", "test")
    }
    assert len(scores["rouge_l"]["sums"]) == rows["valid"] != rows["test"]
    # Its adversary is all that GAKD on own text has more than its control.
    report = (folder / "report.md").read_text()
    controlled = report.split("## Differences to a method that differs in one thing")[1].split("##")[0]
    assert "| own text, share 0.3 | reverse KL, own text |" in controlled
    assert "logits" not in controlled
    assert "On the validation split." in report


@pytest.mark.slow
def test_given_models_take_the_place_of_mini_ones(tmp_path):
    material = make_recipe_material(tmp_path)
    module = tool()
    given = WorldConfig(
        dataset=str(material / "data"), longest_prompt=60, longest_response=34, student_epochs=0, keep_layers=2,
        teacher=str(material / "teacher"), student=str(material / "student"),
    )  # fmt: skip
    config = module.Config(
        output_dir=tmp_path / "study", methods=("sft", "reverse_kl"), seeds=1, steps=3, batch_size=8,
        learning_rates=(1e-3,), sampling_seeds=(1, 2), jobs=0, world=given,
    )  # fmt: skip
    module.main(config)
    found = json.loads((config.output_dir / "results.json").read_text())["entries"]
    assert found.keys() == {"teacher", "student", "sft", "reverse_kl"}
    # One learning rate: no run is made to choose it.
    assert sorted(path.name for path in (config.output_dir / "runs").glob("*/*")) == ["lr-0.001-seed-1"] * 2
    assert found["sft"]["learning_rate"] == 1e-3
    assert found["teacher"]["measures"]["reverse_kl"]["estimate"] == pytest.approx(0, abs=1e-5)
    assert (
        found["reverse_kl"]["measures"]["reverse_kl"]["estimate"]
        < found["student"]["measures"]["reverse_kl"]["estimate"]
    )
    before = AutoModelForCausalLM.from_pretrained(config.output_dir / "world" / "student" / "student")
    assert before.config.num_hidden_layers == 2
    settings = json.loads((config.output_dir / "runs" / "reverse_kl" / "lr-0.001-seed-1" / "config.json").read_text())
    assert settings["models"]["teacher_cache"] == str(config.output_dir / "world" / "teacher-cache")
    with pytest.raises(InputError, match="a given teacher and a given student go together"):
        make_material(World(tmp_path / "half"), replace(given, student=None))
