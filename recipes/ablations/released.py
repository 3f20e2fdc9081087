"""GAKD as its published code computes it, defects included, so that what they do can be measured (GAKD's release).

- The discriminator reads raw logits (a constant that a distribution lacks), prompt and padding too, without a mask; texts are
  padded to --max-length with end-of-text tokens, and it scores the last position, which is always padding.
- R1 and R2 are taken without a graph: constants, which train nothing.
- It steps once a micro-batch, before the student learns from it, from the first step on; the student plays from the second
  epoch on.
- critic_scale multiplies its loss by 1000, which AdamW does not notice.
- KL is softmax, then log(x + 1e-9): no log-probability is below -20.7. Its weight has a factor ds_scale, baselines have none.
- Losses are means of a micro-batch: a token of short texts counts for more.

Not reproduced: a discriminator of its own for each GPU, bf16 in it, its unused LM head, second runs of the teacher, the order
of the data. The arithmetic is in gakd/adversary/published.py.

Without --student: SmolLM2-135M-Instruct into its own every third layer, on docstrings, twenty minutes on two CPU cores.

The paper's setting: python recipes/ablations/released.py --student Qwen3-0.6B --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the release's values. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    cross_entropy_weight: float = 0.5
    """Weight of cross entropy with the dataset's response: 1 - kd_ratio. [0.5]"""
    reverse_kl_weight: float = 0.5
    """Weight of KL(student‖teacher) per token: kd_ratio * ds_scale. [0.5 for 0.6B, 5 for 1.7B, 7.5 for 4B]"""
    adversarial_weight: float = 0.1
    """Weight of the game per sequence: generator_scale. [0.1]"""
    adversarial_start: int | None = None
    """Optimizer step from which the student plays; None: the second epoch. [None]"""
    r1: float = 10.0
    """Weight of R1, which is logged and trains nothing. [10]"""
    r2: float = 10.0
    """Weight of R2, which is logged and trains nothing. [10]"""
    critic_scale: float = 1000.0
    """Multiplies the discriminator's loss. [1000]"""
    discriminator: str = "Qwen3-0.6B"
    """Language model inside the discriminator: a folder, a hub id or a name. [Qwen3-0.6B]"""
    discriminator_layers: tuple[int, ...] = ()
    """Decoder layers of it to keep, as --student-layers. [all]"""
    discriminator_learning_rate: float = 2e-4
    """Learning rate of the discriminator's AdamW, betas (0.9, 0.999). [2e-4]"""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/released")))
DEMO = Config(
    adversarial_start=20, discriminator="SmolLM2-135M-Instruct", discriminator_layers=(10,),
    models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/released-demo"), evaluation=demo.EVALUATION,
)  # fmt: skip


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    import torch

    from gakd import CrossEntropy, LocalTeacher, ReverseKL, pretrained_discriminator
    from gakd.adversary.published import discriminator_losses, padded, student_losses, whole_logits
    from gakd.data import end_of_text, load_data
    from gakd.errors import InputError
    from gakd.evaluation import HeldOut, conclude
    from gakd.models import head_of, load_student
    from gakd.run import Run
    from gakd.teachers import load_shared_tokenizer, load_teacher

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models, run.frozen_dtype, run.is_sharded)
        data = load_data(config.data, tokenizer, config.run.batch_size)
        teacher = load_teacher(config.models, data, run.teacher_dtype, run.loading_device)
        if not isinstance(teacher, LocalTeacher):
            raise InputError("logits of prompt and padding are read too, a cache has none: leave out --teacher-cache")
        vocab_size = min(head_of(student).vocab_size, teacher.head.vocab_size)
        discriminator = pretrained_discriminator(
            config.discriminator, vocab_size, config.discriminator_layers, config.models.trust_remote_code
        )
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    # For the names and units of the log alone: the sums are formed below.
    objective = config.cross_entropy_weight * CrossEntropy() + config.reverse_kl_weight * ReverseKL()
    wrapped = run.setup(student, teacher)
    discriminator_optimizer = torch.optim.AdamW(
        discriminator.parameters(), lr=config.discriminator_learning_rate, weight_decay=0.01
    )
    run.setup_replicated("adversarial", discriminator, discriminator_optimizer)
    before = run.once("before.json", lambda: held_out.scores(student))
    run.restore()

    second_epoch, end = len(data.train) // config.run.batch_size, end_of_text(tokenizer)
    plays_from = second_epoch if config.adversarial_start is None else config.adversarial_start
    weights = {"cross_entropy": config.cross_entropy_weight, "reverse_kl": config.reverse_kl_weight}
    wrapped.train()
    for window in run.steps(data):
        run.counts(window)
        weights["adversarial"] = config.adversarial_weight if run.step >= plays_from else 0.0
        for batch in run.micro_batches(window):
            ids_BT, mask_BT, labels_BT, rows_N = padded(batch, config.data.max_length, end)
            with torch.no_grad():
                real_BTV = whole_logits(teacher.model, ids_BT, mask_BT, vocab_size)
                fake_BTV = whole_logits(wrapped, ids_BT, mask_BT, vocab_size)
            game = discriminator_losses(discriminator, fake_BTV, real_BTV, config.r1, config.r2)
            (config.critic_scale * (game["discriminator"] + game["discriminator_penalty"]).mean()).backward()
            run.update_replicated("adversarial")

            losses = student_losses(
                discriminator, whole_logits(wrapped, ids_BT, mask_BT, vocab_size), real_BTV, labels_BT, rows_N
            )
            loss = torch.stack([weight * losses[name].mean() for name, weight in weights.items()]).sum()
            run.backward(loss / len(window), {name: values.detach() for name, values in (losses | game).items()})
        run.update()
        run.validate(lambda: held_out.validate(student))
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
