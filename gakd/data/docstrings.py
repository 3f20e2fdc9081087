"""Real text that every machine has: the docstrings of the installed Python packages, as instructions and responses.

The harvest runs in a process of its own, because importing hundreds of modules must not touch the caller, and is kept as
JSONL under a name that changes with the versions it was made from. For given versions it is always the same.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from gakd.data.rows import DataError, Row
from gakd.data.splits import Split, split_of_key
from gakd.files import cache_dir

PACKAGES = ("numpy", "torch", "pandas")
# Modules that open windows, start programs, run for long or print when imported, tests, and what only imports where yet another
# package is installed: the harvest must not depend on it.
_SKIPPED = re.compile(
    r"^(antigravity|this|idlelib|turtle.*|turtledemo|tkinter|lib2to3|test|ensurepip|venv|__.*__|_.*)$|"
    r"\.(tests?|testing|_testing|conftest|__main__|f2py|distutils|onnx|_inductor|_dynamo|_vendor|benchmark|"
    r"_test_decorators|tensorboard)(\.|$)"
)
SHORTEST, LONGEST = 20, 8000  # characters of a docstring
FORMAT = 4


def docstring_rows(split: Split) -> list[Row]:
    """One split of the harvest, divided by a hash of the docstring: what two objects share stays on one side."""
    path = harvested()
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            record = json.loads(line)
            if split_of_key(record["output"]) == split:
                rows.append(Row(record["instruction"], "", (record["output"],), where=f"{path}:{number}"))
    return rows


def harvested() -> Path:
    """The harvest's file, made on first use."""
    versions = [f"python {sys.version.split()[0]}", f"format {FORMAT}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    path = cache_dir() / f"docstrings-{'-'.join(re.sub(r'[^0-9a-z.+]', '', text) for text in versions)}.jsonl"
    if path.exists():
        return path
    print("Harvesting the docstrings of the installed packages (once, about 20 s)", flush=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(scratch), *PACKAGES]
    environment = os.environ | {
        "BROWSER": "false",
        "MPLBACKEND": "Agg",
        "PYTHONSAFEPATH": "1",  # files of the current folder would shadow modules
        "PYTHONHASHSEED": "0",
        "CUDA_VISIBLE_DEVICES": "",
    }
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    if result.returncode != 0 or not scratch.exists():
        scratch.unlink(missing_ok=True)
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"harvesting docstrings failed with exit code {result.returncode}: {last}")
    os.replace(scratch, path)
    return path


def harvest(roots: Iterable[str]) -> Iterator[dict[str, str]]:
    """`{name, instruction, output}` of every documented public object below some packages, sorted by name, none twice."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for module in _modules(roots):
        for name, thing, kind in _members(module):
            docstring = _docstring(thing)
            if docstring is None:
                continue
            signature = _signature(thing, docstring)
            record = {
                "name": name,
                "instruction": f"Write the docstring of the Python {kind} `{name}{signature}`",
                "output": docstring,
            }
            # One object is often reachable by several names: the shortest, then first in the alphabet, is kept.
            key = (name.rsplit(".", 1)[-1] + signature, docstring)
            if key not in found or (len(name), name) < (len(found[key]["name"]), found[key]["name"]):
                found[key] = record
    yield from sorted(found.values(), key=lambda record: (record["name"], record["instruction"]))


def _modules(roots: Iterable[str]) -> Iterator[ModuleType]:
    for root in sorted(set(roots)):
        if _SKIPPED.search(root):
            continue
        module = _imported(root)
        if module is None:
            continue
        yield module
        names = [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []), f"{root}.")]
        yield from _modules(names)


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except BaseException:  # a module may do anything at import, SystemExit included; it is then left out
        return None


def _members(module: ModuleType) -> Iterator[tuple[str, Any, str]]:
    """Public functions and classes of a module, and the public methods that a class itself defines."""
    root = module.__name__.split(".")[0]
    for name in sorted(vars(module)):
        thing = vars(module)[name]
        if name.startswith("_") or inspect.ismodule(thing):
            continue
        # What a module imported from another package belongs there.
        if (getattr(thing, "__module__", None) or root).split(".")[0].lstrip("_") not in {root, "builtins"}:
            continue
        full = f"{module.__name__}.{name}"
        if inspect.isclass(thing):
            yield full, thing, "class"
            for method in sorted(vars(thing)):
                function = inspect.unwrap(getattr(vars(thing)[method], "__func__", vars(thing)[method]))
                if not method.startswith("_") and inspect.isroutine(function):
                    yield f"{full}.{method}", function, "method"
        # numpy's ufuncs and the like are no routines, but have docstrings of their own.
        elif inspect.isroutine(thing) or (callable(thing) and thing.__doc__ is not type(thing).__doc__):
            yield full, thing, "function"


def _docstring(thing: Any) -> str | None:
    try:
        text = thing.__doc__
    except Exception:
        return None
    if not isinstance(text, str):
        return None
    text = inspect.cleandoc(text).strip()
    # An address is another one each time, and nothing to learn; NUL and lone surrogates are no text.
    bad = " at 0x" in text or re.search("[\0\ud800-\udfff]", text)
    return text if SHORTEST <= len(text) <= LONGEST and not bad else None


def _signature(thing: Any, docstring: str) -> str:
    """The signature as Python tells it, else as the docstring's first line does, else empty brackets."""
    try:
        parsed = inspect.signature(thing)
        signature = str(parsed)
        # A default that holds an address or a path of this machine would make the harvest another one elsewhere.
        local = (" at 0x", "<module ", sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))
        # A set is written in the order of its members' addresses, another one each time.
        sets = any(isinstance(parameter.default, (set, frozenset)) for parameter in parsed.parameters.values())
        if len(signature) <= 300 and not sets and not any(text in signature for text in local):
            return signature
    except (ValueError, TypeError, NameError, AttributeError, RuntimeError):
        pass
    match = re.match(r"^[\w.]+(\([^\n]*?\))", docstring)
    return match.group(1) if match and len(match.group(1)) <= 300 else "(...)"


def main(out: str, *packages: str) -> None:
    warnings.simplefilter("ignore")
    roots = [*sys.stdlib_module_names, *packages]
    with Path(out).open("w", encoding="utf-8") as file:
        for record in harvest(roots):
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Imported modules may leave threads behind that would keep the process alive.
    sys.stdout.flush()
    os._exit(0)
