"""A run knows its models and its length: what would make other steps is refused by name, what would not is allowed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gakd.errors import InputError
from gakd.models.fingerprints import frozen_mark, untrained_mark, weights_mark
from tests import tiny
from tests.recipe_runs import arguments, assert_identical, make_material, run_here


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("known"))


# ---- marks ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_any_bit_that_is_another_gives_another_mark(dtype):
    torch.manual_seed(0)
    weight = (torch.randn(3, 41) * 50).to(dtype)  # 123 entries: of bytes, no whole number of words
    expected = weights_mark([("a", weight)])
    assert weights_mark([("a", weight.clone())]) == expected
    seen = {expected}
    flat = weight.clone().view(-1).view(torch.uint8)
    for place in range(0, flat.numel(), 5):
        for bit in (1, 128):
            flat[place] ^= bit
            seen.add(weights_mark([("a", flat.view(dtype).view(3, 41))]))
            flat[place] ^= bit
    assert len(seen) == 1 + 2 * len(range(0, flat.numel(), 5))


def test_places_names_shapes_and_order_count():
    torch.manual_seed(0)
    one, other = torch.randn(4, 6), torch.randn(4, 6)
    swapped = one.clone()
    swapped[0, 0], swapped[3, 5] = one[3, 5], one[0, 0]
    marks = [
        weights_mark(weights)
        for weights in (
            [("a", one), ("b", other)], [("b", one), ("a", other)], [("a", other), ("b", one)], [("a", one)], [],
            [("a", swapped), ("b", other)], [("a", one.view(6, 4)), ("b", other)], [("a", one.T), ("b", other)],
        )
    ]  # fmt: skip
    assert len(set(marks)) == len(marks)
    negated = one.clone()
    negated[:2] *= -1  # an even number of signs
    assert weights_mark([("a", negated)]) != weights_mark([("a", one)])
    assert weights_mark([("a", one.T)]) == weights_mark([("a", one.T.contiguous())])


def test_a_model_is_known_by_its_configuration_too_and_not_by_its_place(tmp_path):
    from transformers import AutoModelForCausalLM

    for place in ("here", "there"):
        tiny.model().save_pretrained(tmp_path / place)
    here, there = (AutoModelForCausalLM.from_pretrained(tmp_path / place) for place in ("here", "there"))
    assert frozen_mark(here) == frozen_mark(there)
    there.config.rms_norm_eps *= 2
    assert frozen_mark(here) != frozen_mark(there)


def test_what_is_trained_has_no_mark():
    model, other = tiny.model(seed=0), tiny.model(seed=1)
    assert untrained_mark(model) == untrained_mark(other)
    for one in (model, other):
        one.lm_head.weight.requires_grad_(False)
    assert untrained_mark(model) != untrained_mark(other)


# ---- runs ----


def altered(folder, factor=1.001):
    """Other weights of the same shapes in a model's folder."""
    path = folder / "model.safetensors"
    held = load_file(path)
    name = sorted(held)[0]
    save_file(held | {name: held[name] * factor}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changed", "flags", "named"),
    [
        ("teacher", (), "the teacher"),
        ("student", ("--lora-rank", "2"), "what the student has beside trained weights"),
    ],
)
def test_a_teacher_or_a_frozen_base_that_was_replaced_is_refused(material, tmp_path, changed, flags, named):
    own = shutil.copytree(material, tmp_path / "own")
    given = arguments(own, tmp_path / "run", *flags, "--steps", "4", "--evaluate-every", "0")
    run_here("gakd", *given)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    kept = (own / changed / "model.safetensors").read_bytes()
    altered(own / changed)
    with pytest.raises(InputError, match=f"begun with other models.*Changed: {named}"):
        run_here("gakd", *given, "--resume")
    (own / changed / "model.safetensors").write_bytes(kept)
    run_here("gakd", *given, "--resume")


def test_first_weights_that_are_trained_over_may_be_gone(material, tmp_path):
    """Without LoRA all of the student is in the checkpoint."""
    own = shutil.copytree(material, tmp_path / "own")
    straight = arguments(material, tmp_path / "straight", "--steps", "4", "--evaluate-every", "0")
    run_here("gakd", *straight)
    given = arguments(own, tmp_path / "run", "--steps", "4", "--evaluate-every", "0")
    run_here("gakd", *given)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    altered(own / "student")
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-2"}
    run_here("gakd", *given, "--resume")
    assert_identical(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("name", ["models.json", "data.json", "config.json"])
def test_damage_to_what_a_run_is_known_by_is_named_with_the_remedy(material, tmp_path, name):
    given = arguments(material, tmp_path / "run", "--steps", "2", "--evaluate-every", "0")
    run_here("gakd", *given)
    path = tmp_path / "run" / name
    whole = path.read_text()
    for text in (whole[: len(whole) // 2], "", "[]", "[" * 200_000):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"{name} is damaged.*put back a copy of it, or remove it"):
            run_here("gakd", *given, "--resume")
    path.unlink()
    if name == "config.json":
        with pytest.warns(UserWarning, match="config.json is gone: the run goes on with the settings of this command"):
            run_here("gakd", *given, "--resume")
    else:
        run_here("gakd", *given, "--resume")
    assert json.loads(path.read_text()).keys() == json.loads(whole).keys()


def test_one_letter_of_a_mark_is_damage_and_not_another_model(material, tmp_path):
    given = arguments(material, tmp_path / "run", "--steps", "2", "--evaluate-every", "0")
    run_here("gakd", *given)
    path = tmp_path / "run" / "models.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"teacher": held["teacher"][::-1]}))
    with pytest.raises(InputError, match=r"models.json is damaged \(it is not as it was written\)"):
        run_here("gakd", *given, "--resume")


def test_what_a_killed_export_left_is_removed_at_the_next_start(material, tmp_path):
    given = arguments(material, tmp_path / "run", "--steps", "2", "--evaluate-every", "0")
    run_here("gakd", *given)
    left = tmp_path / "run" / ".student-abcdefgh"
    shutil.copytree(tmp_path / "run" / "student", left)
    with pytest.raises(InputError, match="other settings"):
        run_here("gakd", *given, "--resume", "--learning-rate", "1")
    assert left.exists()  # a run that is refused touches nothing
    rows = tmp_path / "run" / "data.json"
    rows.write_text("{")  # it ends before it trains
    with pytest.raises(InputError, match=r"data.json is damaged"):
        run_here("gakd", *given, "--resume")
    assert not left.exists()


# ---- length ----

CONSTANT = ("--min-learning-rate", "3e-3", "--evaluate-every", "2")


def test_with_a_constant_learning_rate_a_run_may_be_lengthened_to_the_bits_of_a_longer_one(material, tmp_path):
    run_here("gakd", *arguments(material, tmp_path / "long", *CONSTANT, "--steps", "6"))
    run_here("gakd", *arguments(material, tmp_path / "run", *CONSTANT, "--steps", "4"))
    run_here("gakd", *arguments(material, tmp_path / "run", *CONSTANT, "--steps", "6", "--resume"))
    assert_identical(tmp_path / "run", tmp_path / "long")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["steps"] == 6
    with pytest.raises(
        InputError, match=r"has 6 finished steps, 4 are asked for: give at least 6; --student .*student"
    ):
        run_here("gakd", *arguments(material, tmp_path / "run", *CONSTANT, "--steps", "4", "--resume"))


def test_a_validation_at_the_old_end_is_told(material, tmp_path, capsys):
    flags = ("--min-learning-rate", "3e-3", "--evaluate-every", "4")
    run_here("gakd", *arguments(material, tmp_path / "run", *flags, "--steps", "2"))
    run_here("gakd", *arguments(material, tmp_path / "run", *flags, "--steps", "4", "--resume"))
    assert "warning: step 2 was validated as the last of 2, which a run of 4 steps would not" in capsys.readouterr().out


def test_where_the_learning_rate_falls_over_all_steps_what_to_give_instead_is_said(material, tmp_path):
    run_here("gakd", *arguments(material, tmp_path / "run", "--steps", "2", "--evaluate-every", "0"))
    longer = arguments(material, tmp_path / "run", "--steps", "4", "--evaluate-every", "0", "--resume")
    with pytest.raises(
        InputError, match=r"begun for 2 steps, 4 are asked for: .*--student .*student --output-dir ANOTHER"
    ):
        run_here("gakd", *longer)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["steps"] == 2
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # without a finished step nothing could differ
    run_here("gakd", *longer)
    run_here("gakd", *arguments(material, tmp_path / "straight", "--steps", "4", "--evaluate-every", "0"))
    assert_identical(tmp_path / "run", tmp_path / "straight")


def test_a_constant_rate_may_fall_later_and_what_is_done_may_not_have_had_another(material, tmp_path):
    """A schedule may be given anew where the finished steps would have had the same rates."""
    flags = ("--evaluate-every", "0", "--lr-schedule", "constant")
    falling = ("--evaluate-every", "0", "--lr-schedule", "warmup_stable_decay", "--decay-steps", "2", "--steps", "4")
    run_here("sft", *arguments(material, tmp_path / "straight", *falling, recipe="sft"))
    run_here("sft", *arguments(material, tmp_path / "run", *flags, "--steps", "2", recipe="sft"))
    run_here("sft", *arguments(material, tmp_path / "run", *falling, "--resume", recipe="sft"))
    assert_identical(tmp_path / "run", tmp_path / "straight")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["lr_schedule"] == "warmup_stable_decay"
    message = (
        r"run with lr_schedule was warmup_stable_decay, is linear; decay_steps was 2, is None.*--lr-schedule constant"
    )
    linear = ("--evaluate-every", "0", "--lr-schedule", "linear", "--steps", "4", "--resume")
    with pytest.raises(InputError, match=message):
        run_here("sft", *arguments(material, tmp_path / "run", *linear, recipe="sft"))


def test_a_recipe_whose_own_schedule_goes_over_all_steps_says_so(material, tmp_path):
    flags = ("--evaluate-every", "0", "--lr-schedule", "constant")
    run_here("distillm", *arguments(material, tmp_path / "run", *flags, "--steps", "2", recipe="distillm"))
    longer = arguments(material, tmp_path / "run", *flags, "--steps", "4", "--resume", recipe="distillm")
    with pytest.raises(
        InputError, match=r"begun for 2 steps, 4 are asked for: this recipe's own schedule goes over all"
    ):
        run_here("distillm", *longer)


def test_a_run_from_before_a_flag_goes_on_with_its_default(material, tmp_path):
    """Its config.json has another name for one flag, and others not at all."""
    flags = ("--evaluate-every", "0", "--steps", "2")
    given = arguments(material, tmp_path / "run", *flags, recipe="reverse_kl")
    run_here("reverse_kl", *given)
    path = tmp_path / "run" / "config.json"
    held = json.loads(path.read_text())
    held["evaluation"]["temperature"] = held["evaluation"].pop("sampling_temperature")
    for name in ("optimizer", "lr_schedule", "decay_steps", "lr_cycles", "project", "run_name"):
        del held["run"][name]
    del held["kl_temperature"]
    path.write_text(json.dumps(held))
    run_here("reverse_kl", *given, "--resume")
    for changed, message in (
        (("--kl-temperature", "2"), r"kl_temperature was 1.0, is 2.0"),
        (("--sampling-temperature", "0"), r"evaluation.sampling_temperature was 1.0, is 0.0"),
        (("--optimizer", "sgd"), r"run.optimizer was adamw, is sgd"),
        (("--lr-schedule", "linear"), r"lr_schedule was cosine_with_min_lr, is linear"),
    ):
        with pytest.raises(InputError, match=message):
            run_here("reverse_kl", *given, "--resume", *changed)
