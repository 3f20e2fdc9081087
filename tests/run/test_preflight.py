"""What is refused or warned of before a run begins: flags, tokenizers, templates, foreign code, secrets."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel

from gakd import cli
from gakd.cli import parse
from gakd.data import DataConfig, DataError, load_data
from gakd.errors import InputError
from gakd.models import ModelConfig, ModelError, add_lora, load_model, load_tokenizer
from gakd.planning.config import PlanConfig
from gakd.planning.estimate import plan
from gakd.run import RunConfig
from gakd.run.bounds import BOUNDS, check_flags
from gakd.run.preflight import check_devices, check_run, memory_warning, model_warnings, planned, prompt_warning
from tests import tiny
from tests.chat_server import ChatServer, Reply, completion, serving
from tests.recipe_runs import arguments, make_material, module_of
from tests.recipe_table import RECIPES
from tests.recipes.test_tools import imported

SECRET = "hf_0123456789abcdefghij"


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def config_of(*flags: str, recipe: str = "gakd"):
    module = module_of(recipe)
    return parse(module.PAPER, module.DEMO, None, ["--student", "a", *flags])


# ---- numbers ----


@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [
        ("--steps", "0", "at least 1"), ("--steps", "-3", "at least 1"), ("--epochs", "0", "at least 1"),
        ("--batch-size", "0", "at least 1"), ("--micro-batch-size", "-1", "at least 1"),
        ("--learning-rate", "0", "above 0"), ("--learning-rate", "nan", "above 0"), ("--learning-rate", "inf", "above 0"),
        ("--min-learning-rate", "-1e-9", "at least 0"), ("--warmup-steps", "-1", "at least 0"),
        ("--weight-decay", "-0.1", "at least 0"), ("--clip", "0", "above 0"), ("--clip", "nan", "above 0"),
        ("--devices", "0", "at least 1"), ("--num-nodes", "0", "at least 1"), ("--keep-checkpoints", "0", "at least 1"),
        ("--evaluate-every", "-1", "at least 0"), ("--save-every", "-1", "at least 0"), ("--seed", "-1", "at least 0"),
        ("--lora-dropout", "1", "at least 0 and below 1"), ("--lora-dropout", "-0.1", "at least 0 and below 1"),
        ("--lora-rank", "-1", "at least 0"), ("--lora-alpha", "0", "at least 1"), ("--examples", "0", "at least 1"),
        ("--max-new-tokens", "0", "at least 1"), ("--sampling-temperature", "-1", "at least 0"),
        ("--kl-temperature", "0", "at least 0.01 and at most 100"), ("--kl-temperature", "inf", "at least 0.01 and at most 100"),
        ("--decay-steps", "0", "at least 1"), ("--lr-cycles", "0", "at least 1"),
        ("--r1", "nan", "at least 0"), ("--adversarial-weight", "nan", "at least 0"), ("--readout-width", "0", "at least 1"),
        ("--reverse-kl-weight", "-0.5", "at least 0"), ("--adversarial-share", "nan", "at least 0"),
    ],
)  # fmt: skip
def test_a_number_out_of_its_bounds_is_refused_naming_its_flag(flag, value, bound):
    with pytest.raises(InputError) as refused:
        check_flags(config_of(flag, value))
    got = float(value) if "." in value or not value.lstrip("-").isdigit() else int(value)
    line = str(refused.value)
    assert line.startswith(f"{flag} is {bound}")
    if not line.endswith(f", got {value}"):
        assert float(line.rpartition("got ")[2]) == got


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_bounds_for_each_number_and_keeps_them(recipe):
    module = module_of(recipe)
    for config in (module.PAPER, module.DEMO):
        check_flags(config)
        numbers = numbers_of(config)
        assert {"steps", "learning_rate", "sampling_temperature"} <= numbers
        assert {name for name in numbers - BOUNDS.keys() if not name.endswith("_weight")} == set()


def numbers_of(config: Any) -> set[str]:
    """Names of all flags that take a number or none."""
    found: set[str] = set()
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            found |= numbers_of(value)
        elif {hint, *get_args(hint)} & {int, float} and get_origin(hint) is not tuple:
            found.add(name)
    return found


def test_no_clipping_and_settings_at_their_limits_are_allowed():
    flags = (
        "--clip",
        "inf",
        "--lora-dropout",
        "0",
        "--evaluate-every",
        "0",
        "--save-every",
        "0",
        "--text-examples",
        "0",
    )
    config = config_of(*flags, "--sampling-temperature", "0", "--max-prompt-length", "511")
    check_flags(config)
    assert config.run.clip == float("inf")


def test_lengths_that_leave_no_room_are_refused():
    with pytest.raises(InputError, match="--max-prompt-length 512 leaves no room for a response in --max-length 512"):
        check_flags(config_of("--max-prompt-length", "512"))


def test_more_devices_than_gpus_are_refused_and_processes_on_a_cpu_are_not():
    with pytest.raises(InputError, match="--devices 8, and this machine has 2: give --devices 2"):
        check_devices(8, 2)
    assert check_devices(8, 8) is None
    assert check_devices(8, 0) is None


@pytest.mark.parametrize(
    "text", [f"https://me:{SECRET}@host/v1", f"https://{SECRET}@host/v1", f"runs/{SECRET}", "s3:/key:word@bucket"]
)
@pytest.mark.parametrize("flag", ["--teacher", "--dataset", "--output-dir"])
def test_a_secret_in_a_flag_is_refused_without_repeating_it(flag, text, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(InputError, match=f"{flag} holds a password or a key") as refused:
        check_flags(config_of(flag, text))
    assert SECRET not in str(refused.value)
    assert "word" not in str(refused.value).replace("password", "")


def test_paths_and_names_are_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    names = ["owner/name", "/home/me@work/none", "./a:b/c@d", "Qwen3-8B", "hub/set:config"]
    for name in names:
        check_flags(config_of("--teacher", name, "--output-dir", name))
    assert names


# ---- tokenizers ----


def test_equal_templates_are_no_matter():
    assert prompt_warning(tiny.tokenizer(), tiny.tokenizer(), ("a", "b"), "chat") is None
    assert prompt_warning(tiny.tokenizer(), tiny.tokenizer(), ("a", "b"), "alpaca") is None


def test_a_template_that_differs_is_named_with_its_first_difference():
    student, teacher = tiny.tokenizer(), tiny.tokenizer()
    teacher.chat_template = tiny.CHAT_TEMPLATE.replace("assistant\n", "Answer:")
    warning = prompt_warning(student, teacher, ("small", "big"), "chat") or ""
    prefix = len("<s>user\nWhat is a prime number?<e>\n<s>".replace("<s>", "§").replace("<e>", "§"))
    assert (
        f"student small and teacher big set prompts differently, at token {prefix} of 'What is a prime number?'"
        in warning
    )
    assert "they have 'assistan' and 'Answer:<'" in warning
    assert "\n" not in warning
    assert prompt_warning(student, teacher, ("small", "big"), "alpaca") is None


def test_a_template_that_differs_in_conversations_alone_is_found():
    student, teacher = tiny.tokenizer(), tiny.tokenizer()
    teacher.chat_template = "{% if messages[0].role == 'system' %}<|endoftext|>{% endif %}" + tiny.CHAT_TEMPLATE
    warning = prompt_warning(student, teacher, ("small", "big"), "chat") or ""
    assert "at token 0 of 'Who are you?'" in warning


def test_a_shorter_prompt_that_begins_as_the_other_differs_too():
    student, teacher = tiny.tokenizer(), tiny.tokenizer()
    teacher.chat_template = tiny.CHAT_TEMPLATE + "{{ '!' }}"
    assert "they have nothing and '!'" in (prompt_warning(student, teacher, ("a", "b"), "chat") or "")


def test_a_text_start_that_one_tokenizer_adds_is_found_under_the_alpaca_template():
    student, teacher = tiny.tokenizer(), tiny.tokenizer()
    teacher.backend_tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[attr-defined]
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    assert "at token 0" in (prompt_warning(student, teacher, ("a", "b"), "alpaca") or "")
    assert prompt_warning(student, teacher, ("a", "b"), "chat") is None


def test_a_teacher_without_a_template_reads_the_students():
    teacher = tiny.tokenizer()
    teacher.chat_template = None
    assert "teacher b has no chat template" in (prompt_warning(tiny.tokenizer(), teacher, ("a", "b"), "chat") or "")
    assert prompt_warning(tiny.tokenizer(), teacher, ("a", "b"), "alpaca") is None


def test_a_template_that_refuses_a_conversation_is_compared_on_the_others():
    student, teacher = tiny.tokenizer(), tiny.tokenizer()
    student.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + tiny.CHAT_TEMPLATE
    )
    assert prompt_warning(student, teacher, ("a", "b"), "chat") is None


def said(config: ModelConfig) -> list[str]:
    return [warning for warning in model_warnings(config, "chat") if warning is not None]


def test_a_model_that_ends_with_other_tokens_than_its_tokenizer_is_warned_of(material, tmp_path):
    shutil.copytree(material / "teacher", tmp_path / "teacher")
    path = tmp_path / "teacher" / "generation_config.json"
    settings = json.loads(path.read_text())
    config = ModelConfig(str(material / "student"), str(tmp_path / "teacher"))
    words = load_tokenizer(str(tmp_path / "teacher"))
    for own, ends, warned in (
        ("<|im_end|>", 257, False), ("<|endoftext|>", [257, 258], False), ("<|endoftext|>", [257, 256], True),
        ("<|endoftext|>", None, True),
    ):  # fmt: skip
        words.eos_token = own
        words.save_pretrained(tmp_path / "teacher")
        path.write_text(json.dumps(settings | {"eos_token_id": ends}))
        assert len(said(config)) == warned, (own, ends)
    (warning,) = said(config)
    assert "ends its texts with '<|endoftext|>', and a turn here ends with '<|im_end|>'" in warning
    path.unlink()
    assert len(said(config)) == 1


def test_a_tokenizer_larger_than_its_models_embeddings_is_refused(tmp_path):
    """As transformers would end it: IndexError, in the middle of a step, at the first text that has the token."""
    tiny.save(tmp_path / "narrow", tiny.model(vocab_size=258), tiny.tokenizer())
    with pytest.raises(
        ModelError, match=r"has 259 tokens and its model embeds 258: '<\|im_end\|>' would read beyond them"
    ):
        said(ModelConfig(str(tmp_path / "narrow"), None))


def test_neither_a_cached_teacher_nor_one_of_another_vocabulary_is_compared(material, tmp_path):
    student = str(material / "student")
    assert said(ModelConfig(student, "nobody/nowhere", teacher_cache=tmp_path)) == []
    assert said(ModelConfig(student, None)) == []
    other = tiny.tokenizer()
    other.add_tokens(["<extra>"])
    other.chat_template = "{{ messages[0].content }}"
    tiny.save(tmp_path / "other", tiny.model(), other)
    assert said(ModelConfig(student, str(tmp_path / "other"))) == []


def test_the_first_process_alone_looks_at_models(material, monkeypatch):
    config = config_of("--teacher", "no-such-model")
    with pytest.raises(ModelError, match="unknown model 'a'"):
        check_run(config.run, config)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert check_run(config.run, config) is None
    with pytest.raises(InputError, match="--steps"):
        check_run(RunConfig(steps=0), config)


# ---- whole runs: refused with one line, exit status 2, and nothing begun ----


def refusal(output: Path, capsys, *flags: str, recipe: str = "gakd") -> str:
    """The one line that a command ends with; `flags` are all but the output folder."""
    module = module_of(recipe)
    before = sorted(output.rglob("*"))
    config = parse(module.PAPER, module.DEMO, None, flags)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as stopped:
            cli.run(module.main, config)
    assert stopped.value.code == 2
    left = {path.name for path in output.rglob("*") if path not in before}
    assert left <= {"config.json", ".lock"}
    captured = capsys.readouterr()
    assert "step 1" not in captured.out
    assert "Evaluating" not in captured.out
    (line,) = captured.err.splitlines()
    return line.removeprefix("error: ")


def with_tokenizer(material: Path, folder: Path, change) -> str:
    words = tiny.tokenizer()
    change(words)
    shutil.copytree(material / "teacher", folder)
    words.save_pretrained(folder)
    return str(folder)


def test_tokenizers_that_differ(material, tmp_path, capsys):
    teacher = with_tokenizer(material, tmp_path / "teacher", lambda words: words.add_tokens(["<extra>"]))
    line = refusal(tmp_path / "run", capsys, *arguments(material, tmp_path / "run", "--teacher", teacher))
    assert (
        f"student {material / 'student'} (259 tokens) and teacher {teacher} (260 tokens) have different vocabularies"
        in line
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [('{"instruction": "a", "output": " "}', "the response is empty"), ("{", "not JSON"), ("[]", "a row is")],
)
def test_a_bad_row(row, reason, material, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n' + row + "\n")
    line = refusal(tmp_path / "run", capsys, *arguments(material, tmp_path / "run", "--dataset", str(tmp_path)))
    assert f"{tmp_path / 'train.jsonl'}:2: {reason}" in line


def test_prompts_that_leave_no_room(material, tmp_path, capsys):
    output = tmp_path / "run"
    line = refusal(output, capsys, *arguments(material, output, "--max-prompt-length", "96"))
    assert "--max-prompt-length 96 leaves no room for a response in --max-length 96" in line
    line = refusal(output, capsys, *arguments(material, output, "--max-prompt-length", "8"))
    assert "64 of 64 rows whose prompt is longer than 8 tokens: none is left; raise --max-prompt-length" in line


def test_a_training_set_smaller_than_a_batch(material, tmp_path, capsys):
    output = tmp_path / "run"
    line = refusal(output, capsys, *arguments(material, output, "--batch-size", "65"))
    assert "64 training examples do not fill one batch of 65: give more data or a smaller --batch-size" in line


def test_an_output_folder_of_another_run(material, tmp_path, capsys):
    output = tmp_path / "run"
    output.mkdir()
    (output / "metrics.csv").write_text("step\n")
    line = refusal(output, capsys, *arguments(material, output))
    assert "holds another run: add --resume to continue it, or give another --output-dir" in line


@pytest.mark.parametrize("recipe", ["gakd", "sft", "uld"])
def test_a_flag_out_of_bounds(recipe, material, tmp_path, capsys):
    output = tmp_path / "run"
    line = refusal(output, capsys, *arguments(material, output, "--steps", "0", recipe=recipe), recipe=recipe)
    assert line == "--steps is at least 1, got 0"
    assert not output.exists()


def test_a_template_that_differs_is_one_line_before_training(material, tmp_path, monkeypatch):
    def change(words):
        words.chat_template = tiny.CHAT_TEMPLATE.replace("assistant", "model")

    teacher = with_tokenizer(material, tmp_path / "teacher", change)
    config = config_of(*arguments(material, tmp_path / "run", "--teacher", teacher))
    with pytest.warns(UserWarning, match=r"set prompts differently, at token \d+ .*'assistan' and 'model") as warned:
        check_run(config.run, config)
    assert len(warned) == 1


# ---- memory ----


def test_a_run_that_does_not_fit_is_warned_of_with_what_would(material):
    flags = (
        "--teacher",
        str(material / "teacher"),
        "--max-length",
        "256",
        "--max-prompt-length",
        "128",
        "--lora-rank",
        "0",
    )
    config = config_of("--student", str(material / "student"), *flags, "--micro-batch-size", "64", "--batch-size", "64")
    settings = planned(config.run, config, config.models, config.data)
    assert (settings.micro_batch_size, settings.length, settings.readout_width) == (64, 256, 256)
    assert memory_warning(settings) is None
    peak = plan(settings).peak / 1e9
    warning = memory_warning(replace(settings, device_memory=0.5 * peak)) or ""
    assert f"a step needs {peak:.1f} GB by estimate and each device has {0.5 * peak:.1f} GB" in warning
    fitting = int(warning.partition("--micro-batch-size ")[2].split()[0])
    assert 0 < fitting < 64
    for size, fits in ((fitting, True), (fitting + 1, False)):
        assert plan(replace(settings, micro_batch_size=size, device_memory=0.5 * peak)).fits is fits
    assert "not even --micro-batch-size 1 fits" in (memory_warning(replace(settings, device_memory=1e-6)) or "")


def test_a_bound_on_positions_is_planned_as_so_many_of_the_longest(material):
    flags = ("--student", str(material / "student"), "--teacher", str(material / "teacher"), "--max-length", "256")
    config = config_of(*flags, "--micro-batch-tokens", "2100", "--batch-size", "32", "--devices", "2")
    settings = planned(config.run, config, config.models, config.data)
    assert (settings.micro_batch_size, settings.accumulate) == (8, True)
    warning = memory_warning(replace(settings, device_memory=0.5 * plan(settings).peak / 1e9), by_tokens=True) or ""
    fitting = int(warning.partition("--micro-batch-tokens ")[2].split()[0])
    assert fitting % 256 == 0
    assert 0 < fitting < 2100
    least = memory_warning(replace(settings, device_memory=1e-6), by_tokens=True) or ""
    assert "not even --micro-batch-tokens 256 fits" in least
    for tokens, sequences, accumulate in (("100", 1, True), ("4096", 16, False), ("1000000", 16, False)):
        run = replace(config.run, micro_batch_tokens=int(tokens))
        settings = planned(run, config, config.models, config.data)
        assert (settings.micro_batch_size, settings.accumulate) == (sequences, accumulate)


def test_a_model_that_cannot_be_planned_is_no_reason_against_it(tmp_path):
    assert memory_warning(PlanConfig(student=str(tmp_path), device_memory=1e-6)) is None


def test_devices_share_the_batch_and_a_cpu_its_memory(material):
    config = config_of("--batch-size", "8", "--micro-batch-size", "4", "--devices", "4")
    one, four = (planned(replace(config.run, devices=count), config, config.models, config.data) for count in (1, 4))
    assert (one.micro_batch_size, one.accumulate) == (4, True)
    assert (four.micro_batch_size, four.accumulate) == (2, False)
    if not torch.cuda.is_available():
        assert four.device_memory == pytest.approx(one.device_memory / 4)


def test_large_models_are_planned_before_a_run_and_tiny_ones_are_not(material, tmp_path, monkeypatch):
    monkeypatch.setattr("gakd.run.preflight.memory", lambda: 1000)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = config_of(*arguments(material, tmp_path / "run"))
    assert check_run(config.run, config) is None
    monkeypatch.setattr("gakd.run.preflight._SMALL", 1000)
    with pytest.warns(UserWarning, match="a step needs .* GB by estimate and each device has 0.0 GB"):
        check_run(config.run, config)


# ---- LoRA ----


def gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=272, n_embd=32, n_layer=2, n_head=2, n_positions=512, eos_token_id=258, bos_token_id=258
    )
    return tiny.save(folder, GPT2LMHeadModel(config), tiny.tokenizer())  # type: ignore[arg-type]


def test_lora_on_layers_that_a_model_does_not_have(material, tmp_path, capsys):
    pytest.importorskip("peft", reason="the extra gakd[lora]")
    student, output = gpt2(tmp_path / "gpt2"), tmp_path / "run"
    flags = arguments(material, output, "--student", str(student), "--lora-rank", "4", "--lora-targets", "q_proj")
    assert refusal(output, capsys, *flags) == (
        "LoRA adapts linear layers named q_proj, and GPT2LMHeadModel has c_attn, c_fc, c_proj: name some of these by "
        "--lora-targets, or train all weights with --lora-rank 0"
    )


def test_a_folder_that_is_an_adapter_is_refused(material, tmp_path):
    """One on a tied head: what reads the head's weight would leave it out without a word."""
    peft = pytest.importorskip("peft", reason="the extra gakd[lora]")
    base = load_model(str(material / "student"))
    assert base.config.tie_word_embeddings
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="is a LoRA adapter of another model: merge it") as refused:
        load_model(str(tmp_path / "adapter"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("tied", [True, False])
def test_loras_own_targets_leave_the_head_alone(tied):
    pytest.importorskip("peft", reason="the extra gakd[lora]")
    adapted = add_lora(tiny.model(tied=tied), 4, 8, 0.0)
    names = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


# ---- code that comes with a model ----

OWN_CODE = """
import os
from pathlib import Path
from transformers import Qwen3Config, Qwen3ForCausalLM

Path(os.environ["GAKD_TEST_MARK"]).touch()


class OwnConfig(Qwen3Config):
    model_type = "own"


class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(material, tmp_path, monkeypatch) -> tuple[str, Path]:
    """A model folder with code of its own, and the file that this code makes when it is run."""
    folder, mark = tmp_path / "own", tmp_path / "mark"
    shutil.copytree(material / "student", folder)
    (folder / "own_code.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    monkeypatch.setenv("GAKD_TEST_MARK", str(mark))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return str(folder), mark


def test_code_that_comes_with_a_model_is_not_run_unasked(own_code):
    folder, mark = own_code
    with pytest.raises(ModelError, match=r"needs Python code .*read it, then add --trust-remote-code") as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)
    assert not mark.exists()


def test_code_that_comes_with_a_model_is_run_when_asked_for(own_code):
    folder, mark = own_code
    model = load_model(folder, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert mark.exists()


def test_a_run_refuses_such_a_model_and_takes_it_when_asked_to(own_code, material, tmp_path, capsys):
    folder, mark = own_code
    output = tmp_path / "run"
    flags = [*arguments(material, output, recipe="sft"), "--student", folder]
    assert "add --trust-remote-code" in refusal(output, capsys, *flags, recipe="sft")
    assert not mark.exists()
    module = module_of("sft")
    module.main(parse(module.PAPER, module.DEMO, None, [*flags, "--trust-remote-code", "--steps", "1"]))
    assert mark.exists()
    assert (output / "metrics.csv").exists()


# ---- secrets ----


def test_no_file_and_no_line_of_a_run_holds_a_key(material, tmp_path, monkeypatch, capfd):
    keys = {"OPENAI_API_KEY": "sk-0123456789-secret", "HF_TOKEN": SECRET, "WANDB_API_KEY": "wandb-0123456789-secret"}
    for name, key in keys.items():
        monkeypatch.setenv(name, key)
    shutil.copytree(material / "data", tmp_path / "data")
    written = tmp_path / "data" / "train.jsonl"
    told = " ".join((keys["OPENAI_API_KEY"], "is what you sent"))
    tool, server = imported("generate_from_endpoint"), ChatServer(lambda asked: Reply(completion(told)))
    with serving(server):
        endpoint = tool.EndpointConfig(server.url, "m")
        tool.main(tool.Config(written, endpoint, str(material / "data")))
    assert set(server.keys) == {f"Bearer {keys['OPENAI_API_KEY']}"}
    assert '"[key] is what you sent"' in written.read_text()
    module, output = module_of("gakd"), tmp_path / "run"
    flags = arguments(material, output, "--dataset", str(tmp_path / "data"), "--steps", "2", "--max-length", "200")
    module.main(parse(module.PAPER, module.DEMO, None, flags))
    captured = capfd.readouterr()
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(contents) > 10
    assert (output / "config.json").exists()
    for key in keys.values():
        assert [content for content in contents if key.encode() in content] == []
        assert key not in captured.out + captured.err


# ---- data ----


def test_data_may_be_asked_to_fill_a_batch(material):
    words = load_tokenizer(str(material / "student"))
    config = DataConfig(str(material / "data"), max_length=96, max_prompt_length=64)
    assert len(load_data(config, words, 64).train) == 64
    with pytest.raises(DataError, match="64 training examples do not fill one batch of 65"):
        load_data(config, words, 65)
