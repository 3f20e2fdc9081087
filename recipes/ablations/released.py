"""GAKD as its published code computes it, defects included, so that what they do can be measured (GAKD's release).

- The discriminator, a linear map of the vocabulary before a causal LM, reads raw logits, and so a constant that a distribution
  lacks. Texts are padded to --max-length with end-of-text tokens; it gets no mask, reads prompt and padding as well, and
  scores the last position, which is always padding.
- R1 and R2 are taken without a graph: constants, which train nothing.
- It steps once a micro-batch, before the student learns from it: 8 or 16 times as often as the student. It does so from the first
  step on, the student plays from the second epoch on.
- critic_scale multiplies its loss by 1000, which AdamW does not notice.
- KL is softmax, then log(x + 1e-9): no log-probability is below -20.7. Its weight has a factor ds_scale, baselines have none.
- Losses are means of a micro-batch: a token of short texts counts for more.

Not reproduced: on several GPUs the release trains a discriminator a process, each from another start; here all share one. Its
unused LM head and its second runs of the teacher change nothing. Order of the data and optimizer's precision are gakd's.

Without --student: SmolLM2-135M-Instruct into its own every third layer, on docstrings, twenty minutes on two CPU cores.

The paper's setting: python recipes/ablations/released.py --student Qwen3-0.6B --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the release's values. Without --student, the defaults shown are those of the demo.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, softplus

from gakd import IGNORE_INDEX, Batch, CrossEntropy, LocalTeacher, ReverseKL, demo
from gakd.adversarial import frozen
from gakd.cli import start
from gakd.data import DataConfig, load_data
from gakd.errors import InputError
from gakd.evaluation import EvaluationConfig, HeldOut, conclude
from gakd.evaluation.generation import special_ids
from gakd.models import ModelConfig, head_of, load_backbone, load_shared_tokenizer, load_student
from gakd.teachers import load_teacher
from gakd.training import Run, RunConfig


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


class Logits(nn.Module):
    """A model's logits of every position, cut to the shared vocabulary."""

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.model, self.vocabulary = model, vocabulary

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        output = self.model(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False)
        return output.logits[..., : self.vocabulary]


class Discriminator(nn.Module):
    """Logits, mapped to embeddings, read by a language model, scored at the last position: `[B, T, V]` to `[B]`."""

    def __init__(self, name: str, layers: Sequence[int], vocabulary: int) -> None:
        super().__init__()
        self.backbone = load_backbone(name, layers)
        self.backbone.get_input_embeddings().requires_grad_(False)  # never read
        self.embed = nn.Linear(vocabulary, self.backbone.config.hidden_size, bias=False)
        self.score = nn.Linear(self.backbone.config.hidden_size, 1)

    def forward(self, logits_BTV: Tensor) -> Tensor:
        embedded_BTH = self.embed(logits_BTV.to(self.embed.weight.dtype))
        hidden_BTH = self.backbone(inputs_embeds=embedded_BTH, use_cache=False).last_hidden_state
        return self.score(hidden_BTH[:, -1]).squeeze(-1).float()


def padded(batch: Batch, length: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, attention mask and labels at `length` positions; padding is end of text, and the last position always is."""
    more = 0, length - batch.input_ids.shape[1]
    input_ids_BT = batch.input_ids.masked_fill(batch.attention_mask == 0, end)
    return (
        pad(input_ids_BT, more, value=end),
        pad(batch.attention_mask, more),
        pad(batch.labels, more, value=IGNORE_INDEX),
    )


def squared_norm(score_B: Tensor, logits_BTV: Tensor) -> Tensor:
    """`||d score / d logits||^2` `[B]`, without a graph (create_graph=False)."""
    (gradient_BTV,) = torch.autograd.grad(score_B.sum(), logits_BTV, retain_graph=True)
    return gradient_BTV.square().sum((1, 2))


def floored_reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """`sum q (log(q + 1e-9) - log(p + 1e-9))` `[N]`."""
    q_NV, p_NV = (logits_NV.softmax(-1, dtype=torch.float32) for logits_NV in (student_NV, teacher_NV))
    return (q_NV * (torch.log(q_NV + 1e-9) - torch.log(p_NV + 1e-9))).sum(-1)


def main(config: Config) -> None:
    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models)
        data = load_data(config.data, tokenizer)
        teacher = load_teacher(config.models, data, run.teacher_dtype, run.device)
        if not isinstance(teacher, LocalTeacher):
            raise InputError(
                "the published code reads the teacher's logits of prompt and padding too, a teacher cache has none: "
                "leave out --teacher-cache"
            )
        vocabulary = min(head_of(student).vocab_size, teacher.head.vocab_size)
        discriminator = Discriminator(config.discriminator, config.discriminator_layers, vocabulary)
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    # For the names and units of the log alone: the sums are formed below.
    objective = config.cross_entropy_weight * CrossEntropy() + config.reverse_kl_weight * ReverseKL()
    student_logits, teacher_logits = run.setup(Logits(student, vocabulary)), Logits(teacher.model, vocabulary)
    discriminator.to(run.teacher_dtype)
    discriminator_optimizer = torch.optim.AdamW(
        discriminator.parameters(), lr=config.discriminator_learning_rate, weight_decay=0.01
    )
    run.setup_replicated("adversarial", discriminator, discriminator_optimizer)
    before = run.once("before.json", lambda: held_out.scores(student))
    run.restore()

    end, _ = special_ids(tokenizer)
    second_epoch = len(data.train) // config.run.batch_size
    plays_from = second_epoch if config.adversarial_start is None else config.adversarial_start
    student_logits.train()
    for window in run.steps(data):
        run.counts(window)
        adversarial_weight = config.adversarial_weight if run.step >= plays_from else 0.0
        for batch in run.micro_batches(window):
            input_ids_BT, attention_mask_BT, labels_BT = padded(batch, config.data.max_length, end)
            with torch.no_grad():
                real_BTV = teacher_logits(input_ids_BT, attention_mask_BT)
                fake_BTV = student_logits(input_ids_BT, attention_mask_BT)
            real_B, fake_B = discriminator(real_BTV.requires_grad_()), discriminator(fake_BTV.requires_grad_())
            penalty_B = config.r1 / 2 * squared_norm(real_B, real_BTV) + config.r2 / 2 * squared_norm(fake_B, fake_BTV)
            discriminator_B = softplus(fake_B - real_B)
            (config.critic_scale * (discriminator_B + penalty_B).mean()).backward()
            run.update_replicated("adversarial")

            live_BTV, real_BTV = student_logits(input_ids_BT, attention_mask_BT), real_BTV.detach()
            kept_BT = labels_BT != IGNORE_INDEX
            with frozen(discriminator):
                adversarial_B = softplus(discriminator(real_BTV) - discriminator(live_BTV))
            cross_entropy_N = cross_entropy(live_BTV[kept_BT].float(), labels_BT[kept_BT], reduction="none")
            reverse_kl_N = floored_reverse_kl(live_BTV[kept_BT], real_BTV[kept_BT])
            loss = (
                config.cross_entropy_weight * cross_entropy_N.mean()
                + config.reverse_kl_weight * reverse_kl_N.mean()
                + adversarial_weight * adversarial_B.mean()
            )
            logged = {
                "cross_entropy": cross_entropy_N, "reverse_kl": reverse_kl_N, "adversarial": adversarial_B,
                "discriminator": discriminator_B, "discriminator_penalty": penalty_B,
                "discriminator_margin": real_B - fake_B, "discriminator_accuracy": (real_B > fake_B).float(),
            }  # fmt: skip
            run.backward(loss / len(window), {name: values.detach() for name, values in logged.items()})
        run.update()
        run.finish_step(objective)
        run.validate(lambda: held_out.validate(student))

    if run.is_main:
        conclude(run.folder, student, held_out, before)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
