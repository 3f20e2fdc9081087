"""What a study is asked for, and the folder that keeps to it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gakd.files import write_json
from gakd.study.grid import LEARNING_RATES
from gakd.study.settings import keep_to

# What may differ between commands that go on in one folder: which runs there are, not what a run is.
FREE_TO_CHANGE = (
    "output_dir", "quick", "search", "methods", "seeds", "ablation_seeds", "learning_rates", "tune_ablations", "jobs"
)  # fmt: skip


@dataclass
class WorldConfig:
    """Texts and models of the mini world; another world needs another folder."""

    dataset: str = "docstrings"
    """Text of the world, as --dataset of a recipe."""
    vocabulary: int = 2048
    """Tokens of the BPE that is trained on the world's training text."""
    longest_prompt: int = 64
    """Tokens of a prompt; rows with longer ones are left out."""
    longest_response: int = 160
    """Tokens of a response with its end; rows with longer ones are left out, so that every text is complete."""
    train_rows: int | None = None
    """Training rows at most; None for all."""
    held_out_rows: int = 224
    """Rows of the validation and of the test split, at most."""
    teacher_width: int = 128
    """Hidden width of the teacher."""
    teacher_layers: int = 4
    """Decoder layers of the teacher."""
    teacher_epochs: float = 8
    """Passes of the teacher over the training text."""
    student_width: int = 64
    """Hidden width of the students."""
    student_layers: int = 2
    """Decoder layers of the students."""
    student_epochs: float = 3
    """Passes of the SFT that all methods start from; 0, for a given student alone, leaves it out."""
    teacher: str | None = None
    """A model to learn from in place of a mini one: a folder, hub id or name. Needs --student."""
    student: str | None = None
    """Its student, of the same tokenizer: a folder, hub id or name."""
    keep_layers: int | None = None
    """Decoder layers of the given student that are kept, evenly spaced; None for all."""

    @property
    def max_length(self) -> int:
        return self.longest_prompt + self.longest_response


@dataclass
class Config:
    output_dir: Path = Path("runs/study")
    """Folder of the world, all runs and the report; a later command with the same settings goes on in it."""
    quick: bool = False
    """A tiny world, two methods and two seeds: minutes, to see that all works and what comes out."""
    search: bool = False
    """Instead of the comparison: many settings of the adversary, judged on the validation split alone."""
    methods: tuple[str, ...] = ()
    """Methods to run, reverse_kl always among them, and gakd where a variant of it is; none: all."""
    seeds: int = 5
    """Runs of each headline method, each with its own data order."""
    ablation_seeds: int = 3
    """Runs of each variant of GAKD."""
    steps: int = 300
    """Updates of the student in each run."""
    batch_size: int = 16
    """Sequences per update."""
    learning_rates: tuple[float, ...] = LEARNING_RATES
    """Peak learning rates that are tried for every headline method; a single one is taken without trying."""
    tune_ablations: bool = False
    """Try them for every variant of GAKD too; else these take GAKD's, so that one thing changes."""
    sampling_seeds: tuple[int, ...] = (10, 20, 30, 40, 50)
    """Each draws one response a test prompt; validation takes the first three. [10 20 30 40 50]"""
    jobs: int = os.cpu_count() or 1
    """Runs at once, of one thread each; 0: in this process, one after the other."""
    world: WorldConfig = field(default_factory=WorldConfig)


QUICK = Config(
    output_dir=Path("runs/study-quick"), quick=True, methods=("reverse_kl", "gakd"), seeds=2, ablation_seeds=2, steps=40,
    learning_rates=(1e-3, 3e-3), sampling_seeds=(10, 20),
    world=WorldConfig(
        vocabulary=1024, longest_response=64, train_rows=2000, held_out_rows=64, teacher_width=64, teacher_epochs=2,
        student_layers=1, student_epochs=1,
    ),
)  # fmt: skip


def claim(config: Config) -> None:
    """Keep the settings beside the results; InputError where the folder holds a study of other ones."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    if not keep_to(config.output_dir / "study.json", settings):
        write_json(config.output_dir / "study.json", settings)
