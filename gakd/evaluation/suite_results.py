"""The JSON of a suite's evaluations: whole after each checkpoint and set, and gone on from where the tool is run again."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gakd.data import Example
from gakd.errors import InputError
from gakd.evaluation.evaluation import Evaluation
from gakd.evaluation.suites import SuiteScores, is_long, suite_scores
from gakd.files import write_json
from gakd.flags import RENAMED
from gakd.models.fingerprints import model_files, text_digest
from gakd.samplers.resumable import check_settings


class SuiteResults:
    """Evaluations of checkpoints on sets, in `path` if there is one; what it holds already is not done again.

    Not reused is what was measured on other rows, or on a checkpoint whose files have changed since. Raises InputError for
    a file that something else wrote, and for one of another `config`; of that, what `free` names may differ.
    """

    def __init__(
        self,
        path: Path | None,
        config: Mapping[str, Any],
        free: Collection[str],
        sets: Mapping[str, Sequence[Example]],
        long_words: int,
    ) -> None:
        if long_words < 1:
            raise InputError(f"a long answer has at least so many words, got {long_words}: give a number above 0")
        self.path, self.sets, self.long_words = path, sets, long_words
        self.evaluations: dict[str, dict[str, Evaluation]] = {}
        """Checkpoint -> set -> evaluation."""
        self._config = json.loads(json.dumps(config, default=str))
        self._rows = {name: _rows_digest(examples) for name, examples in sets.items()}
        self._files: dict[str, dict[str, Any]] = {}  # of each checkpoint that was evaluated
        if path is not None and path.exists():
            self._continue(path, free)

    def left(self, checkpoint: str) -> list[str]:
        """Sets on which a checkpoint is still to be evaluated."""
        return [name for name in self.sets if name not in self.evaluations.get(checkpoint, {})]

    def add(self, checkpoint: str, name: str, evaluation: Evaluation) -> None:
        if checkpoint not in self._files:
            self._files[checkpoint] = model_files(checkpoint, {})
        self.evaluations.setdefault(checkpoint, {})[name] = evaluation
        if self.path is not None:
            write_json(self.path, self._as_json(), indent=2)

    def scores(self) -> dict[str, SuiteScores]:
        """Of the checkpoints that were evaluated on every set."""
        return {
            checkpoint: suite_scores(of_sets, self.sets, self.long_words)
            for checkpoint, of_sets in self.evaluations.items()
            if not self.left(checkpoint)
        }

    def long_prompts(self) -> dict[str, int]:
        """How many of each set's prompts have long answers."""
        return {name: sum(is_long(one, self.long_words) for one in examples) for name, examples in self.sets.items()}

    def _continue(self, path: Path, free: Collection[str]) -> None:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # neither UTF-8 nor JSON
            state = None
        if not isinstance(state, dict) or "checkpoints" not in state:
            raise InputError(f"{path} holds no results of a suite, so something else wrote it: give another path")
        config = {
            str(key if key in self._config else RENAMED.get(key, key)): value for key, value in state["config"].items()
        }
        fixed = ({key: value for key, value in one.items() if key not in free} for one in (config, self._config))
        check_settings(path, *fixed)
        for checkpoint, of_sets in state["evaluations"].items():
            before = state["checkpoints"][checkpoint]
            now = model_files(checkpoint, before)
            if now and _contents(now) != _contents(before):  # trained again; one that was deleted keeps its scores
                continue
            self._files[checkpoint] = now or before
            self.evaluations[checkpoint] = {
                name: Evaluation(**values)
                for name, values in of_sets.items()
                if state["sets"][name]["rows"] == self._rows[name]
            }
        write_json(path, self._as_json(), indent=2)  # long_words may be another

    def _as_json(self) -> dict[str, Any]:
        long = self.long_prompts()
        return {
            "config": self._config,
            "sets": {
                name: {"prompts": len(examples), "long": long[name], "rows": self._rows[name]}
                for name, examples in self.sets.items()
            },
            "checkpoints": self._files,
            "scores": {checkpoint: _scores_json(scores) for checkpoint, scores in self.scores().items()},
            "evaluations": {
                checkpoint: {name: asdict(evaluation) for name, evaluation in of_sets.items()}
                for checkpoint, of_sets in self.evaluations.items()
            },
        }


def _scores_json(scores: SuiteScores) -> dict[str, Any]:
    of_sets = {name: score.as_json() for name, score in scores.sets.items()}
    long = None if scores.long is None else scores.long.as_json()
    return {"sets": of_sets, "average": scores.average.as_json(), "long": long}


def _rows_digest(examples: Sequence[Example]) -> str:
    return text_digest(json.dumps([[example.key, *example.row.responses] for example in examples]))


def _contents(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: file["sha256"] for name, file in files.items()}
