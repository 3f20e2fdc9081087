"""Files of others: broken, hostile and foreign ones end in one line, and nothing beyond their folder is read or run."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from gakd.data.examples import encode_prompts
from gakd.data.rows import DataError, Row
from gakd.errors import RunError
from gakd.models import ModelError, chat_templates, load_model, load_tokenizer, window_of, write_folder
from gakd.models.export import save_model
from gakd.models.loading import load_backbone
from tests import tiny

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
DEEP = "[" * 200_000
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("good") / "model", tiny.model(), tiny.tokenizer())


@pytest.fixture
def folder(good, tmp_path):
    (tmp_path / "outside").mkdir()
    return shutil.copytree(good, tmp_path / "model")


class Payload:
    """What makes a folder where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def texts(name, content):
    def attack(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return attack


def values(name=CONFIG, **changed):
    def attack(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return attack


def content(change):
    def attack(folder):
        path = folder / WEIGHTS
        path.write_bytes(change(bytearray(path.read_bytes())))

    return attack


def tensors(change):
    def attack(folder):
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return attack


def pickled(change, cut=None):
    def attack(folder):
        torch.save(change(load_file(folder / WEIGHTS), folder), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()
        path = folder / "pytorch_model.bin"
        path.write_bytes(path.read_bytes()[:cut])

    return attack


def raw_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder.parent / "ran")))
    (folder / WEIGHTS).unlink()


def index(shard, metadata=()):
    """An index whose weights are all in `shard`, a name or what makes one of the folder outside."""

    def attack(folder):
        outside = folder.parent / "outside"
        keys = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(outside / "x.safetensors")
        named = shard(outside) if callable(shard) else shard
        held = {"metadata": dict(metadata), "weight_map": dict.fromkeys(keys, named)}
        (folder / INDEX).write_text(json.dumps(held))

    return attack


def only_index(content):
    def attack(folder):
        (folder / WEIGHTS).unlink()
        texts(INDEX, content)(folder)

    return attack


def template(text):
    return texts("chat_template.jinja", text)


def template_value(value):
    def attack(folder):
        (folder / "chat_template.jinja").unlink()
        values("tokenizer_config.json", chat_template=value)(folder)

    return attack


def flip(data):
    return bytes(byte ^ 0xFF if place < 8 else byte for place, byte in enumerate(data))


DAMAGED = r"^model.safetensors of '.*' is damaged or not whole \(.*\): copy or download it again$"
OUTSIDE = r"names '.*', which is not in its folder and is not read"
UNASKED = r"asks for the code '.*' from the hub \(.*implementation.* in its config.json\), .*add --trust-remote-code"
TOO_DEEP = "nests too deep to be read"
NO_OBJECT = "is no JSON"
# fmt: off
OF_MODELS = {
    **{f"weights of {kept} bytes": (content(lambda data, kept=kept: data[:kept]), DAMAGED)
       for kept in (0, 4, 8, 100, 50_000, -1)},
    "weights with a flipped header": (content(flip), DAMAGED),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no file named model.safetensors"),
    "weights that are a pickle": (texts(WEIGHTS, pickle.dumps({})), DAMAGED),
    "a pickled object": (pickled(lambda held, folder: held | {"x": Payload(folder.parent / "ran")}), "hold more than tensors"),
    "a pickle by itself": (raw_pickle, "hold more than tensors"),
    "half a pickle": (pickled(lambda held, _: held, 50_000), "pytorch_model.bin of .* is damaged or not whole"),
    "an empty pickle": (pickled(lambda held, _: held, 0), "pytorch_model.bin of .* is damaged or not whole"),
    "a pickled list": (pickled(lambda held, _: list(held.values())), "cannot load"),
    "a pickled tensor": (pickled(lambda *_: torch.ones(2)), "cannot load"),
    "an index to beside": (index("../outside/x.safetensors"), OUTSIDE),
    "an index around": (index("model/../../outside/x.safetensors"), OUTSIDE),
    "an index to anywhere": (index(lambda outside: str(outside / "x.safetensors")), OUTSIDE),
    "an index to a name that is none": (index("a\0b"), "lacks 1 of the 1 files"),
    "an index to nothing": (index("nowhere.safetensors"), "lacks 1 of the 1 files that its model.safetensors.index.json names"),
    "an index to numbers": (index(3), "lacks 1 of the 1 files"),
    "an index that is no JSON": (only_index("{"), NO_OBJECT),
    "an index that is a list": (only_index("[]"), NO_OBJECT),
    "an index that is binary": (only_index(b"\xff\0"), NO_OBJECT),
    "an index without a map": (only_index('{"metadata": {}}'), "lacks the objects weight_map and metadata"),
    "an index with a list": (only_index('{"metadata": {}, "weight_map": [1]}'), "lacks the objects weight_map and metadata"),
    "an empty index": (only_index('{"metadata": {}, "weight_map": {}}'), "lacks the objects weight_map and metadata"),
    "a deep index": (only_index(DEEP), TOO_DEEP),
    "a deep configuration": (texts(CONFIG, DEEP), TOO_DEEP),
    "a configuration as deep as JSON goes": (values(x=json.loads("[" * 900 + "]" * 900)), "cannot load|nests too deep"),
    "deep generation settings": (texts("generation_config.json", DEEP), TOO_DEEP),
    "generation settings that are no JSON": (texts("generation_config.json", "{"), NO_OBJECT),
    "generation settings that are a list": (texts("generation_config.json", "[]"), NO_OBJECT),
    **{f"a configuration that is {held!r}": (texts(CONFIG, held), NO_OBJECT) for held in ("[]", "3", "null", "", b"\xff\0")},
    "an empty configuration": (texts(CONFIG, "{}"), "model_type"),
    "width -1": (values(hidden_size=-1), "cannot load"),
    "width 1e12": (values(hidden_size=10**12), "cannot load|other shapes"),
    "a width that is text": (values(hidden_size="many"), "cannot load"),
    "a million layers": (values(num_hidden_layers=10**6), "has 1000000 for num_hidden_layers, expected at most 10000"),
    "no heads": (values(num_attention_heads=0), "cannot load"),
    "a number that is none": (values(rms_norm_eps=float("nan")), "has NaN for rms_norm_eps"),
    "an unknown activation": (values(hidden_act="nothing"), "cannot load"),
    "a type that is a list": (values(model_type=["qwen3"]), "cannot load"),
    "another type": (values(model_type="gpt2"), r"lacks \d+ weights that its config.json asks for"),
    "its own code": (values(model_type="own", auto_map={"AutoConfig": "own.Config"}), "add --trust-remote-code"),
    "another configuration's file": (values(configuration_files=["config.4/../../outside/c.json"]), OUTSIDE),
    "weights elsewhere": (values(transformers_weights="../outside/x.safetensors"), OUTSIDE),
    "a kernel": (values(attn_implementation="someone/kernel"), UNASKED),
    "a kernel of the hub's own": (values(_attn_implementation="kernels-community/flash-attn"), UNASKED),
    "a kernel by part": (values(attn_implementation={"": "someone/kernel:f"}), UNASKED),
    "a paged kernel": (values(_attn_implementation="paged|someone/kernel"), UNASKED),
    "a kernel of experts": (values(experts_implementation="someone/kernel"), UNASKED),
    "a quantisation that is a list": (values(quantization_config=[1]), "cannot load"),
    "integers": (tensors(lambda held: held.update({UP: held[UP].long()})), r"holds model.* as integers \(I64\)"),
    "one row": (tensors(lambda held: held.update({UP: held[UP][:1].clone()})), r"weight: \[1, 32\], expected \[64, 32\]"),
    "other embeddings": (values(vocab_size=300), r"embed_tokens.weight: \[272, 32\], expected \[300, 32\]"),
    "a weight less": (tensors(lambda held: held.pop(UP)), f"lacks 1 weights that its config.json asks for, such as {UP}"),
    "a bias more": (tensors(lambda held: held.update({UP.replace("weight", "bias"): torch.ones(64)})), "out of their layers"),
    "scales": (tensors(lambda held: held.update({f"{UP}_scale_inv": torch.ones(1)})), "scales of a quantisation"),
    "a layer more": (values(num_hidden_layers=1, layer_types=["full_attention"]), "has weights of 1 layers more"),
}
OF_TOKENIZERS = {
    "a deep tokenizer": (texts("tokenizer.json", DEEP), "cannot load .*recursion"),
    "a deep tokenizer's configuration": (texts("tokenizer_config.json", DEEP), TOO_DEEP),
    "deep names": (texts("special_tokens_map.json", DEEP), TOO_DEEP),
    **{f"a tokenizer that is {held!r}": (texts("tokenizer.json", held), "cannot load") for held in ("", "[]", "{}", b"\xff\0")},
    **{f"settings that are {held!r}": (texts("tokenizer_config.json", held), NO_OBJECT) for held in ("", "[]", "3", b"\xff\0")},
    "settings with a map that is text": (values("tokenizer_config.json", auto_map="x"), "cannot load"),
    "an end that is a number": (values("tokenizer_config.json", eos_token=3), "cannot load"),
    "another tokenizer's file": (values("tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.json"]), OUTSIDE),
    "few embeddings": (values(vocab_size=100), "has 259 tokens and its model embeds 100"),
    "a vocabulary that is text": (values(vocab_size="many"), "cannot load"),
    "a template that is a number": (template_value(3), "is no text"),
}
# fmt: on


@pytest.fixture(autouse=True)
def pythons_own_depth():
    """inductor doubles it for the rest of a process, and what nests too deep for the one is read by the other."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


def one_line(load, folder, expected):
    with pytest.raises(ModelError, match=expected) as refused:
        load(str(folder))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not (folder.parent / "ran").exists()


@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:The `paged", "ignore:Detected pickle")
@pytest.mark.parametrize("name", OF_MODELS)
def test_a_model_of_others_that_cannot_be_used_is_one_line(name, folder):
    attack, expected = OF_MODELS[name]
    attack(folder)
    one_line(load_model, folder, expected)


@pytest.mark.parametrize("name", OF_TOKENIZERS)
def test_a_tokenizer_of_others_that_cannot_be_used_is_one_line(name, folder):
    attack, expected = OF_TOKENIZERS[name]
    attack(folder)
    one_line(load_tokenizer, folder, expected)


def test_a_model_without_a_tokenizer_is_named_as_that(folder):
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert (folder / "config.json").exists()
    one_line(load_tokenizer, folder, "has a model and no tokenizer: copy tokenizer.json and tokenizer_config.json")


@pytest.mark.parametrize("name", ["a deep configuration", "a configuration that is '3'", "a kernel"])
@pytest.mark.parametrize("load", [window_of, load_tokenizer, load_backbone])
def test_what_reads_the_configuration_alone_refuses_it_too(name, load, folder):
    attack, expected = OF_MODELS[name]
    attack(folder)
    one_line(load, folder, expected)


@pytest.mark.parametrize(
    "name", ["a weight less", "one row", "a layer more", "weights of 100 bytes", "an index to beside"]
)
def test_a_backbone_is_whole_too(name, folder):
    attack, _ = OF_MODELS[name]
    attack(folder)
    one_line(load_backbone, folder, "")


def test_payloads_would_run_where_they_are_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_weights_that_the_model_does_not_know_are_told(folder):
    """Such as a layer that predicts further tokens, which has parts that no other layer has."""
    more = {UP.replace("layers.0", "layers.2"): torch.ones(1), "model.layers.2.eh_proj.weight": torch.ones(1)}
    tensors(lambda held: held.update(more))(folder)
    with pytest.warns(
        UserWarning, match=r"has 2 weights that Qwen3ForCausalLM does not read, such as model.layers.2.eh_proj"
    ):
        load_model(str(folder))


def test_a_folder_of_the_hubs_cache_is_links_to_its_blobs_and_loads(folder, tmp_path):
    snapshot, blobs = tmp_path / "hub/models--a--b/snapshots/1", tmp_path / "hub/models--a--b/blobs"
    index("x.safetensors", {"total_size": 1})(folder)
    shutil.copy(tmp_path / "outside" / "x.safetensors", folder)
    for home in (snapshot, blobs):
        home.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, blobs / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    assert load_model(str(snapshot)).config.hidden_size == 32
    assert len(load_tokenizer(str(snapshot))) == 259


def test_a_repository_of_the_hub_is_checked_like_a_folder(folder, monkeypatch):
    values(_attn_implementation="someone/kernel")(folder)
    asked = []

    def cached(repository, file, **_):
        asked.append(repository)
        return str(folder / file) if (folder / file).exists() else None

    monkeypatch.setattr("gakd.models.files.cached_file", cached)
    with pytest.raises(ModelError, match=UNASKED):
        window_of("someone/with-a-kernel")
    assert set(asked) == {"someone/with-a-kernel"}


def test_links_that_a_user_has_made_are_followed(folder):
    (folder / WEIGHTS).rename(folder.parent / "weights.bytes")
    (folder / WEIGHTS).symlink_to("../weights.bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_model(str(folder)).state_dict()
    assert all(map(torch.equal, loaded.values(), tiny.model().state_dict().values()))


ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "lists": "{% for i in range(99999) %}{{ range(99999)|list }}{% endfor %}",
    "~": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "+": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "join": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = [n.x, n.x]|join %}{% endfor %}",
    "*": "{{ 'a' * 20000000000 }}",
    "a width": "{{ '%20000000000d' % 1 }}",
    "center": "{{ 'a'|center(20000000000) }}",
    "replace": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped(name, folder, monkeypatch):
    monkeypatch.setattr(chat_templates, "SECONDS", 0.3)
    template(ENDLESS[name])(folder)
    one_line(load_tokenizer, folder, "the chat template of .* (works for more than|asks for more memory).*: mend it")
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_a_template_that_loops_on_one_row_alone_is_stopped_too(folder, monkeypatch):
    monkeypatch.setattr(chat_templates, "SECONDS", 0.3)
    template("{% if messages[0].content == 'b' %}" + ENDLESS["loops"] + "{% endif %}{{ messages[0].content }}")(folder)
    words = load_tokenizer(str(folder))
    row = Row("b", responses=("c",), where="train.jsonl:3")
    with pytest.raises(DataError, match=r"'train.jsonl:3': the chat template refuses .*works for more than 0 s"):
        encode_prompts([row], words, "chat")


@pytest.mark.parametrize("room", [0, 300, 1000, 50_000])
@pytest.mark.parametrize("prove", [True, False])
def test_where_there_is_no_room_the_export_before_stays(room, prove, tmp_path):
    words = tiny.tokenizer()
    write_folder(tiny.model(), words, tmp_path / "student")
    before = {path.name: path.read_bytes() for path in (tmp_path / "student").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(RunError, match=r"^cannot write .*student: .*what was there before is intact. make room"):
            write_folder(tiny.model(seed=1), words, tmp_path / "student", prove=prove)
        (tmp_path / "other").mkdir()
        with pytest.raises(RunError, match=r"^cannot write .*other: .*; make room"):
            save_model(tiny.model(seed=1), tmp_path / "other", None, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "student"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "student").iterdir()} == before


def test_an_export_that_was_killed_between_its_two_names_is_found_again(tmp_path):
    words = tiny.tokenizer()
    write_folder(tiny.model(), words, tmp_path / "student")
    (tmp_path / "student").rename(tmp_path / ".student-abcdefgh.old")
    broken = tiny.tokenizer()
    broken.save_pretrained = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(RunError, match=r"No space left on device"):
        write_folder(tiny.model(seed=1), broken, tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
