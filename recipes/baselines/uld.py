"""Universal logit distillation between tokenizers: sorted probabilities, text aligned by characters (ULD, arXiv 2402.12030).

The paper compares position k with position k; here a position of the student meets the teacher's where both have read the same
text, and the others keep cross entropy alone. Its cross entropy is with the teacher's own text: tools/generate.py writes it.
Held-out text is scored without the teacher: divergences token by token mean nothing between two vocabularies.

Without --student: SmolLM2-135M-Instruct into its own every third layer, one tokenizer on both sides, all positions aligned.

Two families: python recipes/baselines/uld.py --student SmolLM2-360M-Instruct --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the paper's values. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    cross_entropy_weight: float = 1.0
    """Weight of cross entropy per token of the dataset's response. [1]"""
    universal_logit_weight: float = 1.5
    """Weight of the distance of sorted probabilities per token of the student, 0 where none of the teacher's meets it. [1.5]"""
    kl_temperature: float = 1.0
    """Divides both models' logits in the distance, which is multiplied by its square."""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/uld")))
DEMO = Config(models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/uld-demo"), evaluation=demo.EVALUATION)


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd import CrossEntropy, Distiller, UniversalLogit, router_balance
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.models import load_student, load_tokenizer
    from gakd.run import Run
    from gakd.teachers import load_aligned_teacher

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_tokenizer(config.models.student, config.models.trust_remote_code)
        student = load_student(config.models, run.frozen_dtype, run.is_sharded)
        data = load_data(config.data, tokenizer, config.run.batch_size)
        teacher = load_aligned_teacher(config.models, data, tokenizer, run.teacher_dtype, run.loading_device)
    held_out = HeldOut(None, tokenizer, data, config.evaluation)
    if run.is_main:
        print(f"The teacher speaks about {teacher.aligned_share:.1%} of the student's response tokens", flush=True)

    divergence = UniversalLogit(config.kl_temperature)
    objective = config.cross_entropy_weight * CrossEntropy() + config.universal_logit_weight * divergence
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
