"""Who may import whom: read off the source, so that a forbidden import fails even where it would work."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gakd"
# What puts the others together.
WHOLE = {"__init__", "training", "launch", "run_folder", "run_checkpoints", "demo"}
LAYERS = {
    "types": set(),
    "functional": set(),
    "errors": set(),
    "run_config": set(),
    "interruptions": set(),
    "step_record": {"types"},
    "guard": {"errors", "step_record"},
    "cache": set(),
    "weights": set(),
    "objective": {"types", "weights"},
    "divergences": {"types", "functional", "objective"},
    "torchtune_loss": {"types", "divergences"},
    "kernel": {"types", "functional"},
    "chunks": {"types", "kernel"},
    "fused": {"types", "kernel", "chunks"},
    "discriminators": {"types"},
    "map_products": set(),
    "readouts": {"types", "map_products"},
    "frozen_heads": {"types", "map_products", "readouts"},
    "log_prob_readout": {"types", "chunks", "readouts"},
    "expected_embedding": {"types", "chunks", "readouts", "map_products"},
    "hidden_readout": {"types"},
    "lm_discriminator": {"types", "models"},
    "games": set(),
    "rewards": set(),
    "seeds": set(),
    "reward_shapers": {"rewards"},
    "adversarial": {"types", "functional", "objective", "readouts", "discriminators", "games", "sharding"} | {"weights"},
    "published": {"types", "adversarial"},
    "export": set(),
    "files": set(),
    "fingerprints": {"files", "model_names"},
    "teacher_cache": {"types", "errors"},
    "cache_writer": {"types", "files", "data", "teacher_cache"},
    "sharding": set(),
    "model_names": {"errors", "cache", "export"},
    "models": {"types", "errors", "export", "model_names", "fingerprints", "sharding", "teacher_cache"},
    "teachers": {"types", "model_names", "models", "data", "fingerprints", "teacher_cache"},
    "aligned_teacher": {"types", "model_names", "models", "data"},
    "distiller": {"types", "functional", "objective", "divergences", "fused", "adversarial", "models", "readouts", "kernel"}
    | {"sharding", "weights"},
    "data": {"types", "errors", "cache", "data"},
    "evaluation": {"types", "errors", "files", "functional", "objective", "divergences", "fused", "models", "export"}
    | {"data", "teachers", "fingerprints", "model_names", "evaluation"},
    "policy_gradient": {"types", "divergences"},
    "rollouts": {"types", "divergences", "evaluation", "fused", "models", "rewards"},
    "adaptive_skew": {"rewards"}, "text_discriminator": {"types", "games"},
    "samplers": {"types", "data", "evaluation", "seeds", "weights"},
    "replay": {"samplers", "seeds", "weights"},
    "two_model_samplers": {"evaluation", "models", "samplers", "seeds", "weights"},
    "vllm_sampler": {"errors", "endpoint", "endpoint_config", "evaluation", "export", "samplers", "seeds"},
    "loggers": {"errors"}, "logs": {"loggers", "machine"}, "response_cache": {"errors", "files"}, "endpoint_config": {"errors"},
    "endpoint": {"errors", "data", "logs", "endpoint_config", "response_cache", "evaluation", "teacher_text"},
    "teacher_text": {"errors", "data", "evaluation", "logs", "run_config", "seeds", "teachers"},
    "step_log": {"types", "adversarial", "loggers", "logs", "objective"},
    "checkpoint": {"errors", "files", "sharding"},
    "config_file": {"errors", "flags"}, "cli": {"errors", "config_file"},
    "recipe_files": {"errors"}, "list_recipes": {"recipe_files"}, "copy_recipe": {"errors", "recipe_files"},
    "run_recipe": {"errors", "recipe_files"},
    "flags": {"errors"},
    "machine": set(),
    "preflight": {"errors", "run_config", "flags", "data", "loggers", "machine", "model_names", "models"} | {"planning"},
    "doctor": {"cache", "machine"}, "command": {"cli"}, "completion": {"command", "recipe_files"},
    "report": {"errors", "files", "adversarial", "evaluation", "report"},
    "study": {"types", "cli", "errors", "files", "machine", "data", "divergences", "evaluation", "export", "fused", "models"}
    | {"recipe_files", "study"},
    "planning": {"types", "errors", "flags", "model_names", "models", "adversarial", "chunks", "discriminators", "divergences"}
    | {"games", "kernel", "objective", "readouts", "planning"},
}  # fmt: skip
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full dotted names of what a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_layers(module):
    layer = Path(module).parts[0].removesuffix(".py")
    if layer not in LAYERS:
        assert layer in WHOLE, f"{module}: give it a layer in this test"
        return
    within = {name.split(".")[1] for name in imported(PACKAGE / module) if name.startswith("gakd.")}
    assert within <= LAYERS[layer], f"{module} may not import {sorted(within - LAYERS[layer])}"


def test_types_and_functional_import_torch_alone():
    for name in ("types", "functional"):
        roots = {module.split(".")[0] for module in imported(PACKAGE / f"{name}.py")} - set(sys.stdlib_module_names)
        assert roots <= {"torch"}


@pytest.mark.parametrize("module", MODULES)
def test_only_training_and_checkpoint_know_fabric(module):
    names = imported(PACKAGE / module)
    assert not any(name.split(".")[0] == "lightning" for name in names), "lightning_fabric, never lightning.fabric"
    if module not in {"training.py", "launch.py", "checkpoint.py", "run_checkpoints.py", "run_folder.py"}:
        assert not any(name.startswith("lightning_fabric") for name in names)


def test_nothing_imports_recipes():
    for module in MODULES:
        assert not any(name.split(".")[0] == "recipes" for name in imported(PACKAGE / module))


def test_importing_gakd_brings_nothing_along():
    heavy = ("torch", "transformers", "lightning_fabric", "datasets", "matplotlib", "peft", "tyro")
    code = f"import sys, gakd; print(*[name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_a_part_of_the_loss_brings_no_library_of_training_data_or_plots():
    heavy = ("lightning_fabric", "datasets", "matplotlib", "peft", "tyro")
    code = f"import sys; from gakd import Distiller; print(*[name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_public_names_are_where_the_type_checker_is_told():
    import gakd

    (block,) = (node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    told = {node.module.removeprefix("gakd."): tuple(name.name for name in node.names) for node in block.body}
    assert told == gakd._HOMES
    assert sorted(name for names in told.values() for name in names) == sorted(gakd.__all__)
    with pytest.raises(AttributeError, match="module 'gakd' has no attribute 'nobody'"):
        gakd.nobody  # noqa: B018
    assert {*gakd.__all__, "__all__"} <= {*dir(gakd)}


def test_every_public_name_exists_once():
    import gakd

    assert sorted(gakd.__all__, key=str.lower) == sorted(set(gakd.__all__), key=str.lower)
    assert all(hasattr(gakd, name) for name in gakd.__all__)
