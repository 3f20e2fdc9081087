"""What comes out of a run: its student in the dtype asked for, with a card, and on the hub where that is asked for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from gakd.cli import parse
from gakd.errors import InputError
from tests.hub_stub import stub_hub
from tests.recipe_runs import arguments, make_material, module_of, run_here, scores, weights


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


def test_a_finished_run_gives_a_student_with_its_card_and_its_command(material, tmp_path, monkeypatch, capsys):
    flags = arguments(material, tmp_path / "run", "--steps", "2", "--evaluate-every", "0", "--export-dtype", "bfloat16")
    run_here("gakd", *flags)
    folder = tmp_path / "run" / "student"
    assert f"card:    {folder / 'README.md'}\n" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16

    card = ModelCard.load(folder / "README.md")
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    after, before = scores(tmp_path / "run", "after"), scores(tmp_path / "run", "before")
    assert metrics["cross_entropy"] == round(after["cross_entropy"], 3)
    assert f"| {before['cross_entropy']:.3f} | {after['cross_entropy']:.3f} |" in card.text
    assert (
        "0.5 * cross_entropy + 0.5 * reverse_kl + ramp(0.1, start=2, steps=2) * adversarial(RelativisticGAN"
        in card.text
    )
    everything = str(card) + (tmp_path / "run" / "about.json").read_text()
    assert str(tmp_path) not in everything
    assert str(material) not in everything

    (command,) = re.findall(r"```bash\n(.*)\n```", card.text)
    module, words = module_of("gakd"), shlex.split(command)
    monkeypatch.chdir(material)  # where the folders are that it names
    again, wanted = parse(module.PAPER, module.DEMO, None, words[3:]), parse(module.PAPER, module.DEMO, None, flags)
    assert words[:3] == ["gakd", "run", "gakd"]
    for group, path in (("models", "student"), ("models", "teacher"), ("data", "dataset")):
        shown, given = (Path(getattr(getattr(config, group), path)).resolve() for config in (again, wanted))
        assert shown == given
        setattr(getattr(again, group), path, getattr(getattr(wanted, group), path))
    wanted.data.date = again.data.date  # which a run sets
    again.run.output_dir = wanted.run.output_dir
    assert again == wanted

    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(tmp_path / "run")
    exec(compile(code.replace("max_new_tokens=64", "max_new_tokens=3"), "card", "exec"), {})
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 1


def test_a_push_comes_last_and_its_failure_costs_nothing(material, tmp_path, monkeypatch, capsys):
    hub = stub_hub(monkeypatch)
    flags = arguments(
        material,
        tmp_path / "run",
        "--steps",
        "2",
        "--evaluate-every",
        "0",
        "--push-to-hub",
        "me/small",
        recipe="sft",
    )
    folder = tmp_path / "run" / "student"

    def upload(folder_path, **_):
        assert (tmp_path / "run" / "after.json").exists()
        assert folder_path == folder
        seen.append({path.name for path in folder.iterdir()})
        if len(seen) == 1:
            raise OSError("the network is down")

    seen: list[set[str]] = []
    hub.upload_folder.side_effect = upload
    with pytest.warns(
        UserWarning, match=r"not on the hub \(the network is down\); it is whole in .*By hand: hf upload me/small"
    ):
        run_here("sft", *flags)
    before = weights(tmp_path / "run")
    assert "hub:  " not in capsys.readouterr().out
    run_here("sft", *flags, "--resume")  # goes on at its end
    assert capsys.readouterr().out.endswith("hub:     HUB/me/small\n")
    assert (
        seen[0]
        == seen[1]
        >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", "generation_config.json"}
    )
    assert hub.whoami.call_count == 2
    after = weights(tmp_path / "run")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert 'name = "me/small"' in (folder / "README.md").read_text()


def test_a_run_that_could_not_be_pushed_does_not_begin(material, tmp_path, monkeypatch):
    hub = stub_hub(monkeypatch)
    monkeypatch.setattr("gakd.models.hub.get_token", lambda: None)
    with pytest.raises(InputError, match="--push-to-hub me/small needs a token of the hub"):
        run_here("gakd", *arguments(material, tmp_path / "run", "--push-to-hub", "me/small"))
    assert not (tmp_path / "run").exists()
    assert not hub.upload_folder.called
