"""The planner: its parts and counts against independent ones, its peak against a run's."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, T5Config

from gakd.cli.command import main as command
from gakd.cli.plan import main
from gakd.errors import InputError
from gakd.models import load_model
from gakd.models.parts import decoder_layers
from gakd.planning.config import PlanConfig
from gakd.planning.estimate import largest_micro_batch, plan
from gakd.planning.tables import tables
from tests import tiny
from tests.architectures import ARCHITECTURES, tiny_config
from tests.benchmarks import memory

SMALL = PlanConfig(student="SmolLM2-135M", teacher="SmolLM2-360M", length=128, readout_width=16)
CUT = replace(SMALL, lora_rank=0, strategy="fsdp2")


@pytest.fixture
def folder(tmp_path):
    tiny.save(tmp_path / "student", tiny.model(layers=4), tiny.tokenizer())
    tiny.save(tmp_path / "teacher", tiny.model(width=48, layers=3, tied=False), tiny.tokenizer())
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        memory.Case("game", "tiny", words=20),
        memory.Case("no game", "tiny", game=False, micro_batch_size=16, words=30, accumulate=True),
    ],
    ids=lambda case: case.title,
)
def test_the_peak_of_a_tiny_run_is_within_15_percent_of_the_plan(case, tmp_path):
    found = memory.compare(case, tmp_path)
    assert found["planned"] == pytest.approx(found["allocated"], rel=0.15)


@pytest.mark.parametrize("lora_rank", [0, 16])
@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_parts_add_up_and_the_peak_is_the_largest_phase(strategy, lora_rank):
    planned = plan(replace(SMALL, lora_rank=lora_rank, strategy=strategy, devices=2))
    assert all(sum(asdict(parts).values()) == parts.total for parts in planned.phases.values())
    assert (
        planned.peak == max(parts.total for parts in planned.phases.values()) == planned.phases[planned.busiest].total
    )
    parts = asdict(planned.phases["token losses"])
    assert list(parts) == [
        "runtime", "weights", "gradients", "optimizer", "activations", "teacher", "discriminator", "fused_chunk", "held_out",
        "writing",
    ]  # fmt: skip
    assert parts.pop("writing") == 0 < planned.phases["evaluation"].writing
    assert all(size > 0 for size in parts.values())


def test_static_parts_are_bytes_times_parameters():
    student, teacher = 134_515_008, 361_821_120
    planned = plan(replace(SMALL, lora_rank=0))
    parts = planned.phases["forward"]
    assert (planned.student.parameters, planned.student.trainable) == (student, student)
    assert (parts.weights, parts.gradients, parts.optimizer) == (4 * student, 4 * student, 8 * student)
    supervised = 4 * 64
    assert parts.teacher == 2 * (teacher + supervised * 960)  # bfloat16 on a GPU, and its last hidden states
    cached = plan(replace(SMALL, teacher_cache=True)).phases
    assert cached["forward"].teacher == 2 * (49_152 * 960 + supervised * 960)
    assert "teacher" not in cached
    assert plan(replace(SMALL, teacher=None)).phases["forward"].teacher == 0
    assert plan(replace(SMALL, lora_rank=0, accumulate=False)).phases["forward"].gradients == 0
    assert plan(replace(SMALL, lora_rank=0, precision="bf16-true")).phases["forward"].weights == 2 * student


def test_sharding_divides_what_it_cuts_and_leaves_the_rest():
    one, eight = (plan(replace(CUT, devices=devices)).phases["update"] for devices in (1, 8))
    assert eight.weights == one.weights / 8
    assert eight.gradients == one.gradients / 8
    assert eight.optimizer == one.optimizer / 8
    assert eight.discriminator == one.discriminator
    head, rows = 2 * 49_152 * 960, 2 * 4 * 64 * 960
    assert one.teacher == 2 * 361_821_120 + rows
    assert eight.teacher - head - rows == pytest.approx((one.teacher - head - rows) / 8, abs=2)  # a head is not cut
    assert plan(replace(CUT, devices=4, num_nodes=2)).phases["update"] == eight
    whole, replicated = plan(replace(CUT, strategy="auto")), plan(replace(CUT, strategy="ddp", devices=8))
    assert replicated.phases["update"].weights == whole.phases["update"].weights
    assert replicated.phases["update"].gradients == whole.phases["update"].gradients  # views of DDP's buckets
    student = 4 * 134_515_008
    once = {kind: plan(replace(CUT, strategy=kind, devices=8, accumulate=False)) for kind in ("ddp", "fsdp2")}
    assert once["ddp"].phases["forward"].gradients == student  # the buckets, which stay
    assert once["fsdp2"].phases["forward"].gradients == 0
    assert plan(replace(CUT, devices=8)).phases["forward"].gradients == student / 8  # summed with each micro-batch


def test_a_cut_model_is_gathered_where_it_runs():
    """SmolLM2-135M by hand: 30 layers of width 576, 3 of 9 heads for keys and values, 1,536 inside, tied embeddings."""
    layer = 576 * (2 * 576 + 2 * 192) + 3 * 576 * 1536 + 2 * 576
    rest = 49_152 * 576 + 576
    assert 30 * layer + rest == 134_515_008
    for precision, of_layer in (("bf16-mixed", 2), ("32-true", 4)):
        phases = plan(replace(CUT, devices=8, precision=precision)).phases
        assert phases["forward"].weights - phases["update"].weights == 4 * rest + of_layer * 2 * layer
        backward, own = phases["backward of layers"].gradients, 4 * 134_515_008 // 8
        assert backward - own == (of_layer + 4) * layer  # as gathered, and in the buffer that is summed in float32
        # The head's and the embeddings' gradient, and their sum.
        assert phases["backward of embeddings"].gradients - own == 4 * (3 * 49_152 * 576 + 576)
    teacher = (phases["teacher"].teacher, phases["update"].teacher)
    layer = 960 * (2 * 960 + 2 * 320) + 3 * 960 * 2560 + 2 * 960
    assert teacher[0] - teacher[1] > 2 * (960 + 2 * layer)  # its last norm and two layers; never its head
    assert teacher[0] - teacher[1] < 2 * (49_152 * 960 + 2 * layer)
    adapted = plan(replace(CUT, devices=8, lora_rank=16)).phases
    adapter = 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    layer = 576 * (2 * 576 + 2 * 192) + 3 * 576 * 1536 + 2 * 576
    assert adapted["forward"].weights - adapted["update"].weights == 2 * (rest + 2 * (layer + adapter))


def test_what_lora_leaves_is_in_16_bits_on_a_gpu():
    adapters = 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    for device, precision, each in (
        ("cuda", "auto", 2), ("cuda", "32-true", 4), ("cpu", "32-true", 4), ("cpu", "bf16-mixed", 4),
    ):  # fmt: skip
        parts = plan(replace(SMALL, device=device, precision=precision)).phases["update"]
        assert parts.weights == each * 134_515_008 + 4 * adapters, (device, precision)
        assert parts.gradients == 4 * adapters
    half, single = (plan(replace(SMALL, precision=precision)) for precision in ("bf16-mixed", "32-true"))
    assert half.phases["token losses"].activations < single.phases["token losses"].activations


def test_evaluation_by_hand():
    planned = plan(replace(SMALL, lora_rank=0))
    parts = planned.phases["evaluation"]
    assert parts.runtime == planned.phases["forward"].runtime == 600 * 10**6
    # Hidden states of 256 validation and 256 test examples of the 360M teacher, 64 supervised tokens each, in bfloat16.
    assert parts.held_out == planned.phases["forward"].held_out == 2 * 512 * 64 * 960
    # A copy in 16 bits; of the teacher, whose sequences are the larger, 32 layers of 2 x 5 heads of 64 a token, the prompt's
    # forward with 2,560 inside, its mask, and the logits.
    cache, forward, mask = 32 * 2 * 5 * 64 * (64 + 256), 64 * (6 * 960 + 3 * 2560), 64 * (64 + 256)
    sequences = 16 * (2 * (cache + forward + mask) + 32 * 49_152)
    assert parts.writing == 2 * 134_515_008 + sequences
    assert (parts.gradients, parts.activations, parts.fused_chunk) == (0, 0, 0)
    one_of_eight = plan(replace(CUT, devices=8)).phases["evaluation"]
    assert one_of_eight.held_out == parts.held_out / 8
    assert one_of_eight.writing == sequences  # a cut model is not copied
    lora = plan(SMALL).phases["evaluation"]
    assert lora.writing - sequences == lora.optimizer / 4  # 2 bytes an adapter, whose moments take 8
    kept = plan(replace(SMALL, lora_rank=0, on_own_text=True)).phases
    assert kept["forward"].writing == 2 * 134_515_008
    assert kept["evaluation"] == parts
    assert "evaluation" not in plan(replace(SMALL, text_examples=0)).phases
    without = plan(replace(SMALL, device="cpu", examples=0)).phases["evaluation"]
    assert (without.runtime, without.held_out, without.writing) == (0, 0, sequences * 2 - 16 * 32 * 49_152)


def test_an_evaluation_that_does_not_fit_is_no_run_that_fits():
    config = replace(SMALL, evaluation_batch_size=4096, device_memory=10.0)
    assert plan(config).busiest == "evaluation"
    assert not plan(config).fits
    assert largest_micro_batch(config) == 0
    assert largest_micro_batch(replace(config, text_examples=0)) > 0


@pytest.mark.parametrize(
    "flag",
    [
        "micro_batch_size",
        "readout_width",
        "discriminator_width",
        pytest.param("length", marks=pytest.mark.slow),
        pytest.param("response_share", marks=pytest.mark.slow),
    ],
)
def test_more_takes_more(flag):
    value = getattr(SMALL, flag)
    peaks = [plan(replace(SMALL, **{flag: type(value)(value * factor)})).peak for factor in (1, 1.5, 2)]
    assert peaks == sorted(set(peaks))


def test_what_saves_memory_saves_memory():
    full = replace(SMALL, lora_rank=0, micro_batch_size=16)
    assert plan(replace(full, activation_checkpointing=True)).peak < plan(full).peak
    assert plan(replace(full, lora_rank=8, lora_dropout=0.0)).peak < plan(full).peak
    assert plan(replace(full, student_layers=(10,))).peak < plan(full).peak
    assert plan(replace(full, teacher_cache=True)).peak < plan(full).peak
    assert plan(replace(full, discriminator=False)).peak < plan(full).peak


@pytest.mark.slow
@pytest.mark.parametrize(("device_memory", "start"), [(3.0, 64), (7.0, 1)])
def test_the_largest_micro_batch_fits_and_one_more_does_not(device_memory, start):
    config = replace(SMALL, device_memory=device_memory, micro_batch_size=start)
    largest = largest_micro_batch(config)
    assert largest >= 1
    assert plan(replace(config, micro_batch_size=largest)).fits
    assert not plan(replace(config, micro_batch_size=largest + 1)).fits


def test_nothing_fits_a_device_that_is_too_small():
    assert largest_micro_batch(replace(SMALL, device_memory=0.5)) == 0


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_flops_are_those_that_torch_counts(folder, lora_rank):
    config = PlanConfig(
        student=str(folder / "student"), teacher=str(folder / "teacher"), lora_rank=lora_rank, length=64, response_share=1.0,
        device="cpu",
    )  # fmt: skip
    planned = plan(config)
    model = tiny.model(width=48, layers=3, tied=False)
    model.set_attn_implementation("eager")  # products that the counter knows
    ids = torch.ones(2, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    # It counts attention to all positions, of which half are masked.
    masked = 2 * 64 * 48 * 3
    assert planned.flops.teacher + masked == counter.get_total_flops() / ids.numel()
    trained = planned.student.trainable_products / planned.student.products
    assert (trained == 1.0) == (lora_rank == 0)
    head = 2 * planned.student.head
    attention = 2 * 64 * planned.student.attention_width
    products = planned.flops.forward - head - attention
    assert planned.flops.backward == pytest.approx(
        products * (1 + trained) + 2 * attention + head * (2 if lora_rank == 0 else 1)
    )
    assert planned.flops.recompute == 0
    recomputed = plan(replace(config, activation_checkpointing=True)).flops
    assert recomputed.recompute == planned.flops.forward - head
    assert recomputed.total == planned.flops.total + recomputed.recompute


def test_flops_of_a_mixture_of_experts_are_those_of_the_active_ones(tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_config("Qwen3-MoE"), dtype=torch.float32).eval()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    model.config.save_pretrained(tmp_path)
    planned = plan(
        PlanConfig(student=str(tmp_path), teacher=None, lora_rank=0, length=32, response_share=1.0, device="cpu")
    )
    ids = torch.randint(0, 90, (2, 32))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    masked = 2 * 32 * planned.student.attention_width
    # Its eager experts multiply the rows that were sent to them: top-k of all.
    assert planned.flops.forward + masked == pytest.approx(counter.get_total_flops() / ids.numel())
    assert planned.student.active < planned.student.parameters


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": "nonsense-1B"}, "unknown model 'nonsense-1B'"),
        ({"teacher": "Qwen9-1B"}, "no configuration of 'Qwen9-1B'"),
        ({"student": "gpt2", "lora_targets": ("q_proj",)}, "--lora-rank 0"),
        ({"student_layers": (99,)}, "cannot keep layers"),
        ({"teacher": None, "teacher_cache": True}, "give --teacher"),
        ({"response_share": 0.0}, "--response-share"),
        ({"length": 0}, "--length"),
        ({"device_memory": -1.0}, "--device-memory"),
        ({"student": "DBRX"}, "cannot be planned"),
        ({"student": "HRM-Text", "strategy": "fsdp2"}, "neither pruned nor cut"),
        ({"student": "encoder-decoder"}, "encoder-decoder"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(changes, words, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if changes.get("student") in (*ARCHITECTURES, "encoder-decoder"):
        name = changes["student"]
        config = T5Config() if name == "encoder-decoder" else tiny_config(name)
        config.save_pretrained(tmp_path / name)
        changes = changes | {"student": str(tmp_path / name)}
    with pytest.raises(InputError, match=words) as error:
        plan(replace(SMALL, **changes))
    assert "\n" not in str(error.value)


def test_the_command_prints_parameters_parts_flops_and_the_largest_micro_batch(folder, capsys):
    config = PlanConfig(student=str(folder / "student"), teacher=str(folder / "teacher"), device_memory=0.7, length=64)
    main(config)
    printed = capsys.readouterr().out
    for part in asdict(plan(config).phases["forward"]):
        assert part.replace("_", " ") in printed
    assert f"{plan(config).student.parameters:,}" in printed
    assert "active. FLOPs" not in printed
    largest = largest_micro_batch(config)
    assert f"The largest micro-batch that fits: {largest}. That is --micro-batch-tokens {64 * largest}." in printed
    command(
        ["plan", "--student", str(folder / "student"), "--teacher", "None", "--strategy", "fsdp2", "--devices", "2"]
    )
    assert "Host memory" in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 4])
def test_host_memory_of_the_first_process_and_of_the_others(rank, folder):
    config = PlanConfig(
        student=str(folder / "student"), teacher=None, strategy="fsdp2", devices=2, lora_rank=rank, device="cpu"
    )
    model = load_model(str(folder / "student"))
    layers = [sum(weight.nbytes for weight in layer.parameters()) for layer in decoder_layers(model)]
    whole = sum(weight.nbytes for weight in model.parameters())
    first, other = plan(config).host_memory
    if rank:
        assert first == other > whole  # adapters beside
    else:
        assert (first, other) == (whole, whole - sum(layers) + 2 * max(layers))


def test_positions_are_planned_as_so_many_sequences():
    by_size, by_tokens = replace(SMALL, micro_batch_size=6), replace(SMALL, micro_batch_tokens=7 * SMALL.length - 1)
    assert plan(by_tokens).phases == plan(by_size).phases
    assert largest_micro_batch(by_tokens) == largest_micro_batch(by_size)
    assert plan(replace(SMALL, micro_batch_tokens=1)).phases == plan(replace(SMALL, micro_batch_size=1)).phases
    with pytest.raises(InputError, match="--micro-batch-tokens is at least 1, got 0"):
        plan(replace(SMALL, micro_batch_tokens=0))


def test_tables_say_what_is_active_idle_and_recurrent(tmp_path):
    tiny_config("Qwen3.5-MoE").save_pretrained(tmp_path)
    planned = plan(PlanConfig(student=str(tmp_path), teacher="Qwen3-30B-A3B", teacher_cache=True, length=8))
    text = "\n".join(part for part in tables(planned, 1) if isinstance(part, str))
    assert "The teacher routes: 30.53 B, 3.35 B active." in text
    assert "The student reads text:" in text
    assert "The student has recurrent or convolutional layers" in text
    assert "The teacher has" not in text
