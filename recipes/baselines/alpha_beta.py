"""Alpha-beta divergence per token, on the dataset's text alone (ABKD, arXiv 2505.04560).

ABKD trains with DistiLLM's loop, text of the student included; that is left out.

Its GPT-2 pair: python recipes/baselines/alpha_beta.py --student gpt2 --teacher gpt2-xl --lora-rank 0 --template alpaca

Without --student: the demo, SmolLM2-135M-Instruct into its own every third layer, minutes on two CPU cores.

In --help, [brackets] hold the paper's values. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    cross_entropy_weight: float = 0.0
    """Weight of cross entropy per token of the dataset's response. [0]"""
    alpha_beta_weight: float = 1.0
    """Weight of the divergence per token. [1]"""
    alpha: float = 0.5
    """Exponent of the teacher's probability; (1, 0) is forward KL. [0.5; its scripts: 0 or 0.2 for GPT-2, 0.1 for OpenLLaMA]"""
    beta: float = 0.5
    """Exponent of the student's probability; (0, 1) is reverse KL. [0.5; its scripts: 1 or 0.7 for GPT-2, 0.8 for OpenLLaMA]"""
    kl_temperature: float = 1.0
    """Divides both models' logits in the divergence, which is multiplied by its square."""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/alpha_beta"), learning_rate=5e-4))
DEMO = Config(
    models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/alpha_beta-demo"), evaluation=demo.EVALUATION
)


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd import AlphaBeta, CrossEntropy, Distiller, router_balance
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

    divergence = AlphaBeta(config.alpha, config.beta, config.kl_temperature)
    objective = config.cross_entropy_weight * CrossEntropy() + config.alpha_beta_weight * divergence
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
