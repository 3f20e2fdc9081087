"""Total variation: cross entropy + half the L1 distance per token, on the dataset's text alone (f-distill, arXiv 2307.15190).

f-distill also trains on text of both models; that is left out. Weights are those of the other baselines here, not the paper's.

Without --student: the demo, SmolLM2-135M-Instruct into its own every third layer, minutes on two CPU cores.

In --help, [brackets] hold the paper's values. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    cross_entropy_weight: float = 0.5
    """Weight of cross entropy per token of the dataset's response."""
    total_variation_weight: float = 0.5
    """Weight of the divergence per token; it lies between 0 and 1, so its gradient is small where the models agree on nothing."""
    kl_temperature: float = 1.0
    """Divides both models' logits in the divergence, which is multiplied by its square."""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/total_variation")))
DEMO = Config(
    models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/total_variation-demo"), evaluation=demo.EVALUATION
)


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd import CrossEntropy, Distiller, TotalVariation, router_balance
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.models import load_student
    from gakd.run import Run
    from gakd.teachers import load_shared_tokenizer, load_teacher

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models, run.frozen_dtype, run.is_sharded)
        data = load_data(config.data, tokenizer, config.run.batch_size)
        teacher = load_teacher(config.models, data, run.teacher_dtype, run.loading_device)
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    divergence = TotalVariation(config.kl_temperature)
    objective = config.cross_entropy_weight * CrossEntropy() + config.total_variation_weight * divergence
    objective += router_balance(student, config.models.router_balance_weight)
    distiller = run.setup(Distiller(student, objective, kernel=config.run.kernel), teacher)
    before = run.once("before.json", lambda: held_out.scores(student))
    run.restore()

    distiller.train()
    for window in run.steps(data):
        coefficients = objective.coefficients(run.step, run.counts(window))
        for batch in run.micro_batches(window):
            output = distiller(batch, teacher(batch), coefficients)
            run.backward(output.loss, output.token_losses)
        run.update()
        run.validate(lambda: held_out.validate(student))
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
