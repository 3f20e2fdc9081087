"""Text that the teacher writes for training: the very tokens it drew, as many as are used, whole after any interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gakd.data import Data, DataConfig, load_data
from gakd.errors import InputError
from gakd.models import load_model, load_tokenizer
from gakd.run import RunConfig
from gakd.samplers import Generation, Sampling, TeacherTextConfig, generate, teacher_examples, teacher_text
from gakd.seeds import seed_of
from gakd.teachers import CachedTeacher, LocalTeacher
from tests.recipe_runs import arguments, assert_identical, make_material, run_here

CONFIG = TeacherTextConfig(teacher_max_new_tokens=6, generation_batch_size=8)


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"), longest=10, certainty=20.0)


@pytest.fixture(scope="module")
def teacher(material) -> LocalTeacher:
    return LocalTeacher(load_model(str(material / "teacher")))


@pytest.fixture(scope="module")
def tokenizer(material):
    return load_tokenizer(str(material / "teacher"))


@pytest.fixture(scope="module")
def data(material, tokenizer) -> Data:
    return load_data(DataConfig(str(material / "data"), max_length=96, max_prompt_length=64), tokenizer)


def run_config(folder: Path, **settings: int) -> RunConfig:
    return RunConfig(output_dir=folder, **settings)


def test_examples_hold_the_tokens_that_were_drawn(teacher, tokenizer, data, tmp_path):
    state = torch.random.get_rng_state()
    examples = teacher_examples(teacher, tokenizer, data, CONFIG, run_config(tmp_path, seed=3))
    assert torch.equal(torch.random.get_rng_state(), state)
    by_prompt = {tuple(example.prompt_ids): example.response_ids for example in examples}
    expected = {}
    for index in range(0, len(data.train), 8):
        prompts = [example.prompt_ids for example in data.train[index : index + 8]]
        sampling = Sampling(6, seed=seed_of(3, index // 8))
        for prompt, drawn in zip(prompts, generate(teacher.model, tokenizer, prompts, sampling), strict=True):
            known = [token for token in drawn.ids if token < len(tokenizer)]
            expected[tuple(prompt)] = [*known, tokenizer.eos_token_id] if drawn.finished else known
    assert len(by_prompt) == len(examples) > 50
    for prompt, response in by_prompt.items():
        assert response == expected.pop(prompt)
    # What is missing are answers without any text.
    assert all(tokenizer.decode(response, skip_special_tokens=True).strip() == "" for response in expected.values())


def test_a_cut_response_has_no_end_and_one_that_ended_has(teacher, tokenizer, data, tmp_path, monkeypatch):
    answers = [Generation([97, 98], 258), Generation([97, 98, 99]), Generation([], 258)]
    long = Generation(list(range(60, 150)), 258)
    monkeypatch.setattr(teacher_text, "generate", lambda model, words, prompts, *_: [*answers, long][: len(prompts)])
    examples = teacher_examples(teacher, tokenizer, data._replace(train=data.train[:4]), CONFIG, run_config(tmp_path))
    end = tokenizer.eos_token_id
    assert [example.response_ids for example in examples[:2]] == [[97, 98, end], [97, 98, 99]]
    (cut,) = examples[2:]  # the empty one is left out, the last does not fit
    assert cut.response_ids == long.ids[: 96 - len(cut.prompt_ids)]
    assert len(cut.response_ids) < len(long.ids)
    assert [example.prompt_ids for example in examples] == [data.train[index].prompt_ids for index in (0, 1, 3)]


def test_no_more_is_written_than_the_steps_can_use(teacher, tokenizer, data, tmp_path):
    some = run_config(tmp_path / "some", steps=4, batch_size=4)
    found = [example.prompt_ids for example in teacher_examples(teacher, tokenizer, data, CONFIG, some)]
    chosen = [example.prompt_ids for example in data.train[::4]]  # evenly spaced: 16 of 64
    assert len(found) > 12
    assert [prompt for prompt in chosen if prompt in found] == found
    state = json.loads((tmp_path / "some" / "teacher-text" / "train.jsonl.json").read_text())
    assert (state["settings"]["prompts"], state["batches"]) == (16, 2)


def test_interrupted_text_goes_on_and_a_whole_one_is_only_read(teacher, tokenizer, data, tmp_path, monkeypatch):
    whole = teacher_examples(teacher, tokenizer, data, CONFIG, run_config(tmp_path / "whole"))
    calls = []

    def generate_twice(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*given)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_text, "generate", generate_twice)
        with pytest.raises(KeyboardInterrupt):
            teacher_examples(teacher, tokenizer, data, CONFIG, run_config(tmp_path / "broken"))
        assert teacher_examples(teacher, tokenizer, data, CONFIG, run_config(tmp_path / "broken")) == whole_in(
            whole, tmp_path
        )
        assert len(calls) == 3 + 6
    files = [(tmp_path / name / "teacher-text" / "train.jsonl").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]
    monkeypatch.setattr(teacher_text, "generate", None)  # calling it would raise
    assert teacher_examples(teacher, tokenizer, data, CONFIG, run_config(tmp_path / "whole")) == whole


def whole_in(examples, tmp_path):
    """The same examples, as read from the other folder: rows name their file."""
    return [
        example._replace(row=example.row._replace(where=example.row.where.replace("/whole/", "/broken/")))
        for example in examples
    ]


def test_text_of_other_settings_is_not_taken_over(teacher, tokenizer, data, tmp_path):
    teacher_examples(teacher, tokenizer, data, CONFIG, run_config(tmp_path, steps=1, batch_size=8))
    with pytest.raises(InputError, match="begun with other settings: seed was 42, is 7"):
        teacher_examples(teacher, tokenizer, data, CONFIG, run_config(tmp_path, steps=1, batch_size=8, seed=7))


def test_what_cannot_be_written_is_refused_in_one_line(teacher, tokenizer, data, tmp_path, monkeypatch):
    cached = CachedTeacher.__new__(CachedTeacher)
    with pytest.raises(InputError, match=r"writes no text: write it with `gakd generate`, cache") as refused:
        teacher_examples(cached, tokenizer, data, CONFIG, run_config(tmp_path))
    assert "\n" not in str(refused.value)
    for name in ("teacher_temperature", "teacher_max_new_tokens", "generation_batch_size"):
        with pytest.raises(InputError, match=f"at least 0, got .*{name}=-1"):
            teacher_examples(teacher, tokenizer, data, replace(CONFIG, **{name: -1}), run_config(tmp_path))
    monkeypatch.setattr(
        teacher_text, "generate", lambda model, words, prompts, *_: [Generation([], 258)] * len(prompts)
    )
    with pytest.raises(InputError, match="all 64 responses of the teacher are empty"):
        teacher_examples(teacher, tokenizer, data, CONFIG, run_config(tmp_path / "empty"))


def test_a_run_that_was_broken_off_while_the_teacher_wrote_ends_the_same(material, tmp_path, monkeypatch):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_here("seqkd", *arguments(material, straight, recipe="seqkd"))
    calls = []

    def generate_once(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*given)

    monkeypatch.setattr(teacher_text, "generate", generate_once)
    with pytest.raises(KeyboardInterrupt):
        run_here("seqkd", *arguments(material, broken, recipe="seqkd"))
    run_here("seqkd", *arguments(material, broken, recipe="seqkd"), "--resume")
    assert_identical(broken, straight)
