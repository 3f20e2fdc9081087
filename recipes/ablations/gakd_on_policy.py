"""GAKD on text that the student itself writes, mixed with the dataset's: its KL and its game on both (GAKD).

Cross entropy stays with the dataset's text: on the student's own its expected gradient at a token is zero.
Without --student: SmolLM2-135M-Instruct into its own every third layer, on docstrings, minutes on two CPU cores.

The paper's setting: python recipes/ablations/gakd_on_policy.py --student Qwen3-0.6B --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the paper's values. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    student_text: float = 0.5
    """Share of the steps on the student's own text, 0 to 1; the others learn from the dataset's. [0: not in the paper]"""
    student_max_new_tokens: int = 256
    """Tokens after which the student's response is cut; a cut one trains without an end."""
    cross_entropy_weight: float = 0.5
    """Weight of cross entropy per token of the dataset's response. [0.5]"""
    reverse_kl_weight: float = 0.5
    """Weight of KL(student‖teacher) per token. [0.5 for 0.6B; its release: 5 for 1.7B, 7.5 for 4B]"""
    kl_temperature: float = 1.0
    """Divides both models' logits in the KL, which is multiplied by its square."""
    adversarial_weight: float = 0.1
    """Weight of the game per sequence, at the end of its ramp. [0.1]"""
    adversarial_share: float | None = None
    """Hold the game's gradient, at the last hidden states, at this share of the token terms' instead. [not in the paper]"""
    adversarial_start: int = 0
    """Optimizer step at which the game begins. [0; its release: the second epoch]"""
    adversarial_ramp: int = 1
    """Steps over which its weight rises. [1]"""
    r1: float = 10.0
    """Weight of R1: half the squared gradient of the score with respect to the teacher's logits. [10]"""
    r2: float = 10.0
    """Weight of R2: the same with respect to the student's. [10]"""
    readout_width: int = 256
    """Width R of the discriminator's linear map of the logits; behind it stands a small Transformer. [a 0.6B LM]"""
    discriminator_width: int = 256
    """Width of that Transformer, a multiple of 4. [that LM's]"""
    discriminator_learning_rate: float = 2e-4
    """Learning rate of the discriminator's AdamW, betas (0, 0.99). [2e-4]"""
    discriminator_every: Literal["step", "micro"] = "step"
    """One discriminator update per optimizer step, or per micro-batch as in the paper's release."""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/gakd_on_policy")))
DEMO = Config(
    adversarial_weight=0.02, adversarial_start=20, adversarial_ramp=20, r1=100.0, r2=100.0,
    discriminator_learning_rate=5e-5, readout_width=64, student_max_new_tokens=40,
    models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/gakd_on_policy-demo"), evaluation=demo.EVALUATION,
)  # fmt: skip


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    import torch

    from gakd import (
        Adversarial,
        CrossEntropy,
        Distiller,
        RelativisticGAN,
        ReverseKL,
        TransformerDiscriminator,
        balanced,
        logit_readout,
        ramp,
        router_balance,
    )
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.models import head_of, load_student
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

    sampling = Sampling(config.student_max_new_tokens, seed=run.seed)
    own_text = ModelSampler(student, tokenizer, sampling, config.data.max_length, teacher.head.vocab_size)
    sampler = Mixture(
        [(config.student_text, own_text), (1 - config.student_text, dataset_sampler)], "batch", config.run.seed
    )

    adversarial = Adversarial(
        TransformerDiscriminator(config.readout_width, config.discriminator_width),
        RelativisticGAN(config.r1, config.r2),
        readout=logit_readout(head_of(student), teacher.head, config.readout_width),
    )
    level = config.adversarial_weight if config.adversarial_share is None else config.adversarial_share
    weight = ramp(level, config.adversarial_start, config.adversarial_ramp)
    divergence = ReverseKL(config.kl_temperature)
    objective = config.cross_entropy_weight * CrossEntropy() + config.reverse_kl_weight * divergence
    objective += (weight if config.adversarial_share is None else balanced(weight)) * adversarial
    objective += router_balance(student, config.models.router_balance_weight)
    distiller = run.setup(Distiller(student, objective, kernel=config.run.kernel), teacher)
    optimizer = torch.optim.AdamW(adversarial.parameters(), config.discriminator_learning_rate, betas=(0.0, 0.99))
    run.setup_replicated("adversarial", adversarial, optimizer)
    before = run.once("before.json", lambda: held_out.scores(student))
    run.restore()

    distiller.train()
    for window in run.steps(data):
        window = resample(window, sampler, run.step, data.pad_token_id)
        coefficients = objective.coefficients(run.step, run.counts(window))
        if sampler.counts[0]:
            coefficients = coefficients.only("reverse_kl", "adversarial")
        for batch in run.micro_batches(window):
            teacher_output = teacher(batch)
            output = distiller(batch, teacher_output, coefficients)
            game = adversarial(output, teacher_output, batch, coefficients)
            run.backward(output.loss + game.loss, output.token_losses | game.losses)
            if config.discriminator_every == "micro":
                adversarial.flush()
                run.update_replicated("adversarial")
        run.note("student_text", float(sampler.counts[0] > 0))
        adversarial.flush()
        run.update()
        run.update_replicated("adversarial")
        run.validate(lambda: held_out.validate(student))
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
