"""DistiLLM: skew divergence, and the student's own text only as far as validation asks for it (DistiLLM, arXiv 2402.03898).

Whenever the validation loss has risen, a larger share of the steps learns from the student's text, new or replayed from
a buffer of what it wrote; the others learn from the dataset's. The paper adds cross entropy on a pretraining corpus.

Without --student: the demo, SmolLM2-135M-Instruct into its own every third layer, minutes on two CPU cores.

The paper's setting: python recipes/baselines/distillm.py --student Qwen3-0.6B --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the values of its release. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    direction: Literal["forward", "reverse"] = "reverse"
    """Skew KL of the student from the teacher or the other way round: which mixture is compared with which model."""
    alpha: float = 0.1
    """Share of a distribution in its own mixture, 0 to 1. [0.1]"""
    kl_temperature: float = 1.0
    """Divides both models' logits in the divergence, which is multiplied by its square."""
    initial_threshold: float = 0.0
    """Share of the steps on the student's text at the start, 0 to 1. [0]"""
    threshold_step: float = 0.1
    """What that share rises by when the validation loss has risen. [0.1]"""
    threshold_tolerance: float = 0.1
    """How much the validation loss, cross entropy in nats, has to rise for that. [0.1]"""
    replay: Literal["decreasing", "constant", "increasing"] = "decreasing"
    """How the part of that share that is written anew, not replayed, changes over the run. [decreasing]"""
    replay_capacity: int = 1000
    """Sequences that a process keeps for replay. [1000]"""
    student_max_new_tokens: int = 256
    """Tokens after which the student's response is cut; a cut one trains without an end."""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/distillm")))
DEMO = Config(
    initial_threshold=0.5, replay_capacity=16, student_max_new_tokens=40,
    models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/distillm-demo"), evaluation=demo.EVALUATION,
)  # fmt: skip


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd import Distiller, SkewForwardKL, SkewReverseKL, router_balance
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.models import load_student
    from gakd.run import Run
    from gakd.samplers import AdaptiveThreshold, ModelSampler, ReplaySampler, Sampling, resample
    from gakd.teachers import load_reader, load_shared_tokenizer

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models, run.frozen_dtype, run.is_sharded)
        data = load_data(config.data, tokenizer, config.run.batch_size)
        teacher = load_reader(config.models, run.teacher_dtype, run.loading_device)
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    sampling = Sampling(config.student_max_new_tokens, seed=run.seed)
    own_text = ModelSampler(student, tokenizer, sampling, config.data.max_length, teacher.head.vocab_size)
    threshold = AdaptiveThreshold(config.initial_threshold, config.threshold_step, config.threshold_tolerance)
    sampler = ReplaySampler(
        own_text, threshold, run.total_steps(data), config.replay_capacity, config.replay, config.run.seed, run.rank
    )
    run.keep("replay", sampler)

    skew_kl = SkewReverseKL if config.direction == "reverse" else SkewForwardKL
    objective = 1.0 * skew_kl(config.alpha, temperature=config.kl_temperature)
    objective += router_balance(student, config.models.router_balance_weight)
    distiller = run.setup(Distiller(student, objective, kernel=config.run.kernel), teacher)
    before = run.once("before.json", lambda: held_out.scores(student))
    threshold.observe(run.once("start.json", lambda: held_out.validate(student))["cross_entropy"])
    run.restore()

    distiller.train()
    for window in run.steps(data):
        window = resample(window, sampler, run.step, data.pad_token_id)
        coefficients = objective.coefficients(run.step, run.counts(window))
        for batch in run.micro_batches(window):
            output = distiller(batch, teacher(batch), coefficients)
            run.backward(output.loss, output.token_losses)
        run.note("student_text", sampler.source == "student")
        run.note("replayed_text", sampler.source == "replay")
        run.note("threshold", threshold.value)
        run.update()
        if scores := run.validate(lambda: held_out.validate(student)):
            threshold.observe(scores["cross_entropy"])
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
