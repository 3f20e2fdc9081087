"""What a student comes from, in words for others: names without folders, dtypes, licences."""

from __future__ import annotations

import json

import pytest
import torch

from gakd.files import last_name
from gakd.models.names import hub_id, resolve
from gakd.models.origin import Origin, dtype_of, licence_of, origin_of
from tests import tiny


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("Qwen3-0.6B", Origin("Qwen/Qwen3-0.6B", True)), ("me/mine", Origin("me/mine", True)),
        ("SmolLM2-135M-Instruct", Origin("HuggingFaceTB/SmolLM2-135M-Instruct", True)),
        ("runs/sft/student", Origin("student", False)), ("sft", Origin("sft", False)),
        ("~/models/own", Origin("own", False)), ("/data/x/student", Origin("student", False)),
    ],
)  # fmt: skip
def test_a_model_on_the_hub_has_its_address_and_a_folder_its_last_name(name, origin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/sft/student", "sft"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert origin_of(name) == origin
    assert (hub_id(name) is not None) == origin.on_hub
    if origin.on_hub and name.startswith("Qwen"):
        assert resolve(name) == origin.name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dolly", "dolly"), ("owner/name", "owner/name"), ("owner/name:config", "owner/name:config"),
        ("rows.jsonl", "rows.jsonl"),
        ("/home/me/rows.jsonl", "rows.jsonl"), ("../rows.jsonl", "rows.jsonl"), ("~/rows.jsonl", "rows.jsonl"),
        ("here/rows", "rows"), ("/data/set/*.jsonl", "*.jsonl"), ("all-linear", "all-linear"), ("a=b,c=d", "a=b,c=d"),
        ("http://host.inside:8000/v1", "v1"),
    ],
)  # fmt: skip
def test_a_path_goes_by_its_last_name(text, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "rows").mkdir(parents=True)
    assert last_name(text) == shown


@pytest.mark.parametrize(
    ("card", "config", "found"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", None, {"license": "apache-2.0"}),
        ("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n", None,
         {"license": "other", "license_name": "own", "license_link": "LICENSE"}),
        ("---\nlicense: [mit, x]\n---\n", None, {}), ("---\nlicense: : :\n---\n", None, {}), ("# no front matter", None, {}),
        ("---\n- a list\n---\n", None, {}), (None, "mit", {"license": "mit"}), (None, 3, {}), (None, None, {}),
        ("---\nlicense_name: alone\n---\n", None, {}),
    ],
)  # fmt: skip
def test_a_licence_is_what_the_bases_own_files_say(card, config, found, tmp_path):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps({"license": config}))
    assert licence_of(str(tmp_path)) == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bases_dtype_is_its_configurations(dtype, tmp_path):
    tiny.model().to(dtype).save_pretrained(tmp_path)
    assert dtype_of(str(tmp_path)) == dtype
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert dtype_of(str(tmp_path)) == torch.float32
