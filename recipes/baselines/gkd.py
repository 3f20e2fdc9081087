"""GKD: generalised Jensen-Shannon on text that the student itself writes, mixed with the dataset's (GKD, arXiv 2306.13649).

Each step a coin decides whose responses it learns from; the student's are drawn anew, all of a step in one batch.
Without --student: the demo, SmolLM2-135M-Instruct into its own every third layer, minutes on two CPU cores.

The paper's setting: python recipes/baselines/gkd.py --student Qwen3-0.6B --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the values of TRL's implementation. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    beta: float = 0.5
    """Weight of the teacher in the mixture of Jensen-Shannon: 0 is forward KL, 1 reverse KL. [0.5]"""
    kl_temperature: float = 1.0
    """Divides both models' logits in the divergence, which is multiplied by its square."""
    student_text: float = 0.5
    """Share of the steps that learn from the student's own text, 0 to 1; the others learn from the dataset's. [0.5]"""
    student_temperature: float = 0.9
    """Divides the student's logits when it writes. [0.9]"""
    student_max_new_tokens: int = 128
    """Tokens after which the student's response is cut; a cut one trains without an end. [128]"""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/gkd")))
DEMO = Config(
    student_max_new_tokens=40,
    models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/gkd-demo"), evaluation=demo.EVALUATION,
)  # fmt: skip


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd import Distiller, JensenShannon, router_balance
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.models import load_student
    from gakd.run import Run
    from gakd.samplers import Mixture, ModelSampler, Sampling, dataset_sampler, resample
    from gakd.teachers import load_reader, load_shared_tokenizer

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models, run.frozen_dtype, run.is_sharded)
        data = load_data(config.data, tokenizer, config.run.batch_size, prompts_alone=config.student_text == 1)
        teacher = load_reader(config.models, run.teacher_dtype, run.loading_device)
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    # A rank draws responses of its own; whose text a step learns from, all ranks draw alike.
    sampling = Sampling(config.student_max_new_tokens, config.student_temperature, seed=run.seed)
    own_text = ModelSampler(student, tokenizer, sampling, config.data.max_length, teacher.head.vocab_size)
    parts = [(config.student_text, own_text), (1 - config.student_text, dataset_sampler)]
    sampler = Mixture(parts, per="batch", seed=config.run.seed)

    objective = 1.0 * JensenShannon(config.beta, config.kl_temperature)
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
        own_share = sampler.counts[0] / sum(sampler.counts)
        run.note("student_text", own_share)
        run.note("truncated", own_text.truncated * own_share)
        run.update()
        run.validate(lambda: held_out.validate(student))
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
