"""The teacher cache: what it gives back, what it refuses and why, and what makes it stale."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gakd.data import Data, DataConfig, Example, collate, load_data
from gakd.errors import RunError
from gakd.evaluation import EvaluationConfig, HeldOut
from gakd.files import read_sealed, write_sealed
from gakd.models import ModelConfig, head_of, load_model, load_tokenizer
from gakd.teachers import (
    CachedTeacher,
    CacheError,
    CacheWriter,
    LocalTeacher,
    TeacherCache,
    load_shared_tokenizer,
    load_teacher,
)
from gakd.teachers.cache import HEAD, MANIFEST
from gakd.teachers.cache_filling import batched, fill, teacher_files
from gakd.types import Head
from tests import tiny
from tests.flips import turned
from tests.recipes.test_tools import imported

CPU = torch.device("cpu")
LENGTHS = {"max_length": 96, "max_prompt_length": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A teacher, a dataset whose first prompt comes in two splits, and a cache of them in shards of a few batches."""
    folder = tmp_path_factory.mktemp("cached")
    tiny.save(folder / "teacher", tiny.model(width=48, layers=3, tied=False, seed=2, scale=4.0), tiny.tokenizer())
    (folder / "data").mkdir()
    for split, rows in (("train", 40), ("valid", 5), ("test", 5)):
        records = [{"instruction": f"{split} {index}", "output": "ab" * (index % 9 + 1)} for index in range(1, rows)]
        records += [{"instruction": "shared", "output": "twice"}]
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    imported("cache_teacher").main(cache_config(folder))
    return folder


def data_config(folder: Path, **changed: object) -> DataConfig:
    return DataConfig(**{"dataset": str(folder / "data"), **LENGTHS, **changed})  # type: ignore[arg-type]


def cache_config(folder: Path, output: str = "cache", **changed: object):
    settings = {"batch_size": 4, "shard_megabytes": 0, "dtype": "float32", "data": data_config(folder), **changed}
    return imported("cache_teacher").Config(str(folder / "teacher"), folder / output, **settings)


@pytest.fixture(scope="module")
def data(folder) -> Data:
    return load_data(data_config(folder), load_tokenizer(str(folder / "teacher")))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """Teacher, data and cache, to be damaged."""
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def models(folder: Path, **changed: object) -> ModelConfig:
    teacher = str(folder / "teacher")
    settings = {"student": teacher, "teacher": teacher, "teacher_cache": folder / "cache", **changed}
    return ModelConfig(**settings)  # type: ignore[arg-type]


def opened(folder: Path, data: Data, **changed: object) -> CachedTeacher:
    teacher = load_teacher(models(folder, **changed), data, torch.float32, CPU)
    assert isinstance(teacher, CachedTeacher)
    return teacher


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def refused(match: str, folder: Path, data: Data, **changed: object) -> None:
    with pytest.raises(CacheError, match=match) as error:
        opened(folder, data, **changed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_cached_teacher_is_the_live_one_in_any_batch(folder, data, size):
    cached, live = opened(folder, data), LocalTeacher(load_model(str(folder / "teacher")))
    assert torch.equal(cached.head.weight, live.head.weight)
    for split in (data.train, data.valid, data.test):
        batch = collate(split[-size:], data.pad_token_id)
        ours, theirs = cached(batch), live(batch)
        torch.testing.assert_close(ours.hidden_NH, theirs.hidden_NH, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.logits(), theirs.logits(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_stored_is_what_the_teacher_said_bit_for_bit(folder, data, dtype):
    tool = imported("cache_teacher")
    tool.main(cache_config(folder, f"cache-{dtype}", dtype=dtype))
    cached = CachedTeacher(TeacherCache(folder / f"cache-{dtype}"))
    live = LocalTeacher(load_model(str(folder / "teacher"), getattr(torch, dtype)))
    unique = {example.key: example for split in (data.train, data.valid, data.test) for example in split}
    for examples in batched(list(unique.values()), 4):
        batch = collate(examples, data.pad_token_id)
        assert cached(batch).hidden_NH.dtype == getattr(torch, dtype)
        assert torch.equal(cached(batch).hidden_NH, live(batch).hidden_NH)


def test_equal_sequences_are_stored_once(folder, data):
    manifest = json.loads((folder / "cache" / MANIFEST).read_text())
    assert (manifest["sequences"], sum(len(split) for split in data[:3])) == (48, 50)
    unique = {example.key: len(example.response_ids) for split in data[:3] for example in split}
    assert manifest["rows"] == sum(unique.values())
    assert len(manifest["files"]) == 1 + 12  # the head, and a shard for each batch of four


def test_heads_come_back_with_bias_scale_and_softcap(tmp_path):
    writer = CacheWriter(tmp_path / "cache", {"dtype": "bfloat16", "teacher": "t"}, {})
    head = Head(torch.randn(7, 4).bfloat16(), torch.randn(7).bfloat16(), 0.5, 30.0)
    writer.write_head(head)
    keys = [Example([1], [2, 3], None).key, Example([1, 2], [3], None).key]  # type: ignore[arg-type]
    hidden = torch.randn(3, 4).bfloat16()
    writer.write_shard("shard-00000.safetensors", keys, [2, 1], hidden)
    writer.finish(2, 3)
    cache = TeacherCache(tmp_path / "cache")
    read = cache.head()
    assert torch.equal(read.weight, head.weight)
    assert torch.equal(read.bias, head.bias)
    assert (read.scale, read.softcap) == (0.5, 30.0)
    rows, lengths = cache.rows(keys[::-1])
    assert torch.equal(rows, hidden[[2, 0, 1]])
    assert lengths == [1, 2]
    assert cache.missing([*keys, "00" * 16]) == 1
    with pytest.raises(CacheError, match="1 of 2 sequences are not in the teacher cache"):
        cache.rows([keys[0], "ff" * 16])


def test_a_batch_that_collate_did_not_make_is_refused(folder, data):
    batch = collate(data.train[:2], data.pad_token_id)
    with pytest.raises(CacheError, match=r"supervises .* tokens, the teacher cache has \[\] for its keys"):
        opened(folder, data)(batch._replace(keys=()))


SHARD = "shard-00003.safetensors"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def overwrite_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 40 + path.read_bytes()[40:])


def edit(path: Path, **values: object) -> None:
    write_sealed(path, read_sealed(path) | values)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda cache: truncate(cache / SHARD), f"{SHARD}: it has .* bytes, the manifest says"),
        (lambda cache: (cache / SHARD).unlink(), f"{SHARD}: it is missing"),
        (lambda cache: truncate(cache / HEAD), f"{HEAD}: it has .* bytes"),
        (lambda cache: overwrite_header(cache / SHARD), f"{SHARD}: its header cannot be read"),
        (lambda cache: edit(cache / MANIFEST, complete=False), "is not finished: .* goes on where it stopped"),
        (lambda cache: edit(cache / MANIFEST, format=99), "has format 99, this gakd reads format 1"),
        (lambda cache: (cache / MANIFEST).write_text("{"), "cannot be read"),
        (lambda cache: (cache / MANIFEST).unlink(), "no teacher cache in"),
    ],
)
def test_damage_is_refused_with_its_reason(damage, reason, copy, data):
    damage(copy / "cache")
    refused(reason, copy, data)


def read_whole(folder: Path, data: Data) -> list[torch.Tensor]:
    """All that a run reads of a cache: its head, and the rows of every example."""
    teacher = opened(folder, data)
    outputs = [teacher.each([example.key for example in examples]) for examples in (data.train, data.valid, data.test)]
    return [teacher.head.weight, *(output.hidden_NH for split in outputs for output in split)]


@pytest.mark.parametrize(("victim", "flips"), [(SHARD, 120), (HEAD, 120), (MANIFEST, 120)])
def test_any_bit_that_is_another_is_noticed(copy, data, victim, flips):
    """Where it is not, what is read is what was written: white space of the manifest."""
    expected = read_whole(copy, data)
    path, named = copy / "cache" / victim, list[str]()
    for changed in turned(path.read_bytes(), flips, victim):
        path.write_bytes(changed)
        try:
            found = read_whole(copy, data)
        except CacheError as error:
            named.append(str(error))
        else:
            assert victim == MANIFEST
            assert all(map(torch.equal, found, expected))
    assert len(named) == flips or victim == MANIFEST
    assert len(named) > flips / 2
    assert all(victim in line and "again" in line for line in named)


def test_a_sequence_that_damage_hides_is_not_taken_for_one_of_other_data(copy, data):
    from safetensors.torch import load_file, save_file

    path = copy / "cache" / SHARD
    held = load_file(path)
    held["keys"][0] ^= 1
    save_file(held, path)
    with pytest.raises(CacheError, match=f"is damaged, {SHARD}: it is not as it was written"):
        opened(copy, data)


def test_a_cache_from_before_its_manifest_had_a_digest_is_read(copy, data):
    expected = read_whole(copy, data)
    path = copy / "cache" / MANIFEST
    path.write_text(json.dumps(read_sealed(path), indent=1))
    assert all(map(torch.equal, read_whole(copy, data), expected))


def test_a_second_writer_is_refused(copy):
    config = cache_config(copy)
    lock = "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
    lock += "print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", lock, str(copy / "cache" / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(CacheError, match=r"another process writes .*cache: wait for it or end it, or give another"):
            imported("cache_teacher").main(config)
        first.kill()
    imported("cache_teacher").main(config)


@pytest.mark.parametrize("room", [0, 3000])
def test_where_there_is_no_room_the_files_before_stay_and_the_same_command_goes_on(folder, copy, room, monkeypatch):
    tool, config = imported("cache_teacher"), cache_config(copy, "full")

    def without_room(*given) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            fill(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr("gakd.teachers.cache_filling.fill", without_room)
    with pytest.raises(
        RunError, match=r"^cannot write .*full/.*; the files before it are whole: make room, then run the same"
    ):
        tool.main(config)
    monkeypatch.undo()
    imported("cache_teacher").main(config)
    ours, theirs = contents(copy / "full"), contents(folder / "cache")
    assert ours.pop(MANIFEST)
    assert theirs.pop(MANIFEST)
    assert ours == theirs


def test_the_tool_makes_damaged_files_again(copy, folder, data, capsys):
    path = copy / "cache" / SHARD
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # a bit of a hidden state or a length: size and header are right
    path.write_bytes(content)
    (copy / "cache" / HEAD).unlink()
    imported("cache_teacher").main(cache_config(copy))
    assert f"{SHARD} is not as it was written, it is made again" in capsys.readouterr().out
    ours, theirs = contents(copy / "cache"), contents(folder / "cache")
    assert ours.pop(MANIFEST)
    assert theirs.pop(MANIFEST)  # the copy's teacher has other times and another name
    assert ours == theirs


def test_a_finished_cache_is_left_alone_and_loads_no_model(folder, monkeypatch, capsys):
    before, tool = contents(folder / "cache"), imported("cache_teacher")
    monkeypatch.setattr("gakd.models.loading.load_model", None)
    tool.main(cache_config(folder))
    assert contents(folder / "cache") == before
    printed = capsys.readouterr().out
    assert "is complete, every byte as it was written" in printed
    assert "192 bytes per token, exact; top-k schemes 114 to 300, truncated; full bfloat16 logits 544" in printed


def test_other_settings_in_the_same_folder_are_refused(copy):
    tool = imported("cache_teacher")
    shorter = data_config(copy, max_length=60, max_prompt_length=50)
    for changed, reason in (
        (
            {"data": shorter},
            r"data was \w{12}, is \w{12}; dataset was .*; max_length was 96, is 60; max_prompt_length was 64",
        ),
        ({"dtype": "bfloat16"}, "dtype was float32, is bfloat16"),
        ({"splits": ("train",)}, r"splits\.test was 5, is None"),
    ):
        with pytest.raises(CacheError, match=f"begun with other settings: .*{reason}"):
            tool.main(cache_config(copy, **changed))
    tiny.save(copy / "teacher", tiny.model(width=48, layers=3, tied=False, seed=3), tiny.tokenizer())
    with pytest.raises(
        CacheError, match=r"weights\.model\.safetensors was \w{12}, is \w{12}\. Use the same, or another"
    ):
        tool.main(cache_config(copy))
    (copy / "full").mkdir()
    (copy / "full" / "notes.txt").touch()
    with pytest.raises(CacheError, match="holds files but no manifest"):
        tool.main(cache_config(copy, "full"))
    (copy / "killed").mkdir()
    (copy / "killed" / ".manifest.json.tmp").write_text("{")  # within the first save
    tool.main(cache_config(copy, "killed"))
    assert json.loads((copy / "killed" / "manifest.json").read_text())["complete"]


def test_another_teacher_makes_a_cache_stale(copy, data):
    weights = copy / "teacher" / "model.safetensors"
    opened(copy, data)
    os.utime(weights)  # hashed, and found to be the same
    opened(copy, data)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("is stale: model.safetensors in .* but was .* Cache the teacher again", copy, data)
    config = copy / "teacher" / "config.json"
    weights.write_bytes(content)
    config.write_text(config.read_text() + "\n")
    refused("is stale: config.json", copy, data)


def test_a_teacher_that_is_not_there_goes_by_its_name(copy, folder, data):
    cached = str(folder / "teacher")
    (copy / "teacher" / "model.safetensors").unlink()
    refused(f"made from {cached}, this run's teacher is .*copy/teacher, which is not on this machine", copy, data)
    refused("this run's teacher is nobody, which is not on this machine", copy, data, teacher="nobody")
    opened(copy, data, teacher=None)
    settings = json.loads((copy / "cache" / MANIFEST).read_text())["settings"]
    edit(copy / "cache" / MANIFEST, settings=settings | {"teacher": "nobody"})
    opened(copy, data, teacher="nobody")


def test_a_subset_may_use_a_cache_and_other_text_may_not(folder, data, tmp_path):
    opened(folder, data._replace(train=data.train[::3], test=data.test[:1]))
    tokenizer = load_tokenizer(str(folder / "teacher"))
    shorter = load_data(data_config(folder, max_length=60, max_prompt_length=50), tokenizer)
    reason = r"\d+ of 40 training examples are not .*: it was made with max_length 96, this run has 60; .*\. Give"
    refused(reason, folder, shorter)
    alpaca = load_data(data_config(folder, template="alpaca", max_length=300, max_prompt_length=250), tokenizer)
    refused("40 of 40 training .*template chat, this run has alpaca", folder, alpaca)
    changed = data._replace(valid=[data.valid[0]._replace(response_ids=[1, 2])])
    refused("1 of 1 validation .*its settings are the same, so the data has changed since", folder, changed)
    imported("cache_teacher").main(cache_config(folder, "train-only", splits=("train",)))
    refused("made of the splits train alone", folder, data, teacher_cache=folder / "train-only")


def test_tokenizers_are_compared_without_the_teacher(folder, tmp_path):
    model, words = tiny.model(seed=1), tiny.tokenizer()
    student = tiny.save(tmp_path / "student", model, words)
    load_shared_tokenizer(models(folder, student=str(student), teacher="nobody"))
    words.eos_token = "<|endoftext|>"  # a turn ends as the template ends it
    tiny.save(tmp_path / "other end", model, words)
    load_shared_tokenizer(models(folder, student=str(tmp_path / "other end")))
    words.add_tokens(["<more>"])
    tiny.save(tmp_path / "other", model, words)
    with pytest.raises(ValueError, match=r"another tokenizer \(260 tokens\) than the teacher cache"):
        load_shared_tokenizer(models(folder, student=str(tmp_path / "other")))


def test_a_students_chat_template_is_cached_on_request(folder, tmp_path):
    words = tiny.tokenizer()
    words.chat_template = words.chat_template.replace("{{ message.role }}", "{{ message.role }}:").replace(
        "assistant\n", "assistant:\n"
    )
    student = str(tiny.save(tmp_path / "student", tiny.model(seed=1), words))
    data = load_data(data_config(folder), load_tokenizer(student))
    refused("another chat template than that of", folder, data, student=student)
    imported("cache_teacher").main(cache_config(folder, "templated", tokenizer=student))
    opened(folder, data, student=student, teacher_cache=folder / "templated")


def test_held_out_scores_come_from_the_cache(folder, data):
    tokenizer, student = load_tokenizer(str(folder / "teacher")), tiny.model(seed=1)
    live = LocalTeacher(load_model(str(folder / "teacher")))
    config = EvaluationConfig(examples=4, text_examples=1, max_new_tokens=2)
    ours, theirs = (HeldOut(teacher, tokenizer, data, config) for teacher in (opened(folder, data), live))
    assert ours.validate(student) == pytest.approx(theirs.validate(student), rel=1e-5)
    cached, expected = ours.scores(student), theirs.scores(student)
    assert cached["student"]["forward_kl"] == pytest.approx(expected["student"]["forward_kl"], rel=1e-5)
    assert cached["teacher"]["cross_entropy"] == pytest.approx(expected["teacher"]["cross_entropy"], rel=1e-5)
    assert cached["teacher"]["rouge_l"] is None
    assert head_of(live.model).vocab_size == ours.teacher.head.vocab_size


def test_adapters_are_not_cached(copy):
    (copy / "teacher" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge its adapters"):
        teacher_files(str(copy / "teacher"), copy / "cache")
