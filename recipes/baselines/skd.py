"""Speculative KD: the student drafts, the teacher replaces what is not among its top tokens (SKD, arXiv 2410.11325).

Early on that is nearly the teacher's text, and the more the student agrees, the more its own.
Without --student: the demo, SmolLM2-135M-Instruct into its own every third layer, minutes on two CPU cores.

The paper's setting: python recipes/baselines/skd.py --student Qwen3-0.6B --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the values of its release. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """What the student is asked to match at each token of that text. [forward_kl]"""
    kl_temperature: float = 1.0
    """Divides both models' logits in the divergence, which is multiplied by its square."""
    top_k: int = 25
    """A drafted token stands where it is among this many of the teacher's most probable ones. [25]"""
    student_temperature: float = 0.5
    """Divides the student's logits when it drafts. [0.5]"""
    student_top_p: float = 0.5
    """The student drafts from its most probable tokens that hold this share. [0.5]"""
    teacher_temperature: float = 0.2
    """Divides the teacher's logits when it replaces. [0.2]"""
    teacher_top_p: float = 0.5
    """The teacher replaces from its most probable tokens that hold this share. [0.5]"""
    student_max_new_tokens: int = 256
    """Tokens after which a response is cut; a cut one trains without an end."""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/skd")))
DEMO = Config(
    student_max_new_tokens=40,
    models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/skd-demo"), evaluation=demo.EVALUATION,
)  # fmt: skip


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd import Distiller, ForwardKL, JensenShannon, ReverseKL, router_balance
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.models import load_student
    from gakd.run import Run
    from gakd.samplers import Sampling, SpeculativeSampler, resample
    from gakd.teachers import load_reader, load_shared_tokenizer

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models, run.frozen_dtype, run.is_sharded)
        data = load_data(config.data, tokenizer, config.run.batch_size, prompts_alone=True)
        teacher = load_reader(config.models, run.teacher_dtype, run.loading_device)
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    longest, seed = config.student_max_new_tokens, run.seed
    drafts = Sampling(longest, config.student_temperature, config.student_top_p, seed)
    replacements = Sampling(longest, config.teacher_temperature, config.teacher_top_p)
    sampler = SpeculativeSampler(
        student, teacher.model, tokenizer, config.top_k, drafts, replacements, config.data.max_length
    )

    divergences = {"forward_kl": ForwardKL, "reverse_kl": ReverseKL, "jensen_shannon": JensenShannon}
    objective = 1.0 * divergences[config.divergence](temperature=config.kl_temperature)
    objective += router_balance(student, config.models.router_balance_weight)
    distiller = run.setup(Distiller(student, objective, kernel=config.run.kernel), teacher)
    before = run.once("before.json", lambda: held_out.scores(student))
    run.restore()

    distiller.train()
    for window in run.steps(data):
        window = resample(window, sampler, run.step, data.pad_token_id)
        coefficients = objective.coefficients(run.step, run.counts(window))
        for batch in run.micro_batches(window):
            output = distiller(batch, teacher(batch), coefficients)
            run.backward(output.loss, output.token_losses)
        run.note("accepted", sampler.accepted)
        run.note("truncated", sampler.truncated)
        run.update()
        run.validate(lambda: held_out.validate(student))
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
