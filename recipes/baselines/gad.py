"""GAD: a discriminator of whole texts is the reward of the student's own ones, black-box distillation (GAD, arXiv 2511.10643).

A language model with a scalar head tells the teacher's responses from the student's (Bradley-Terry). First the student is
fine-tuned on the teacher's, then GRPO raises the score of what it writes. With --teacher the teacher writes first, into
OUTPUT_DIR/teacher-text; with `--teacher None` the dataset's responses are the teacher's: docs/black-box.md, for a server's.

Without --student: the demo, SmolLM2-135M-Instruct into its own every third layer, minutes on two CPU cores.

On GAKD's data: python recipes/baselines/gad.py --student Qwen3-0.6B --discriminator Qwen3-0.6B --dataset dolly
In --help, [brackets] hold the paper's values. Without --student, the defaults shown are those of the demo.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, TeacherTextConfig, demo, start


@dataclass
class Config:
    discriminator: str = "Qwen3-0.6B"
    """The discriminator's backbone: a folder, hub id or name, usually the student's; of the student's tokenizer."""
    discriminator_layers: tuple[int, ...] = ()
    """Its decoder layers to keep, as --student-layers. None: all."""
    discriminator_learning_rate: float = 1e-6
    """Learning rate of the discriminator's AdamW. [1e-6]"""
    adversarial_start: int = 800
    """Optimizer step at which fine-tuning on the teacher's text ends and the game begins. [800, an epoch]"""
    samples_per_prompt: int = 8
    """Responses that the student writes to each prompt, compared among themselves. [8]"""
    kl_weight: float = 0.001
    """Weight of the distance to the student as it was loaded, per token. [0.001]"""
    clip_ratio: float = 0.2
    """How far a token's probability may move from that at sampling before its gradient is cut. [0.2]"""
    student_temperature: float = 0.8
    """Divides the student's logits when it writes. [0.8]"""
    student_max_new_tokens: int = 1536
    """Tokens after which the student's response is cut; a cut one trains without an end. [1536]"""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    text: TeacherTextConfig = field(default_factory=TeacherTextConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/gad"), learning_rate=1e-6, batch_size=256, clip=0.2))
DEMO = Config(
    discriminator="SmolLM2-135M-Instruct", discriminator_layers=(10,), discriminator_learning_rate=5e-5,
    adversarial_start=60, samples_per_prompt=4, student_max_new_tokens=40, models=demo.MODELS, data=demo.DATA,
    text=demo.TEACHER_TEXT, run=demo.run_config("runs/gad-demo"), evaluation=demo.EVALUATION,
)  # fmt: skip


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    import torch

    from gakd import CrossEntropy, Distiller, RelativisticGAN, ramp, router_balance, stepwise
    from gakd.adversary import TextDiscriminator, compare, scores_of
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.losses import KLToReference, PolicyGradient
    from gakd.models import load_backbone, load_student
    from gakd.rewards import DiscriminatorScore, GroupNormalize, RewardToGo
    from gakd.run import Run
    from gakd.samplers import ModelSampler, Sampling, UntilEnd, resample, teacher_examples
    from gakd.samplers.rollouts import model_log_probs, policy_log_probs, rollout_of, with_advantages
    from gakd.teachers import load_reader, load_shared_tokenizer

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models, run.frozen_dtype)
        data = load_data(config.data, tokenizer, config.run.batch_size, prompts_alone=config.models.teacher is not None)
        teacher = None
        if config.models.teacher is not None:
            teacher = load_reader(config.models, run.teacher_dtype, run.loading_device)
            data = data._replace(train=teacher_examples(teacher, tokenizer, data, config.text, config.run))
        body = load_backbone(config.discriminator, config.discriminator_layers, "sdpa", config.models.trust_remote_code)
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    temperature, begin, game = config.student_temperature, config.adversarial_start, RelativisticGAN(r1=0, r2=0)
    sampling = Sampling(config.student_max_new_tokens, temperature, seed=run.seed)
    own_text = ModelSampler(student, tokenizer, sampling, config.data.max_length)
    reward = DiscriminatorScore() >> GroupNormalize() >> RewardToGo(1)
    discriminator, reference = TextDiscriminator(body), deepcopy(student).requires_grad_(False).to(run.device)
    optimizer = torch.optim.AdamW(discriminator.parameters(), config.discriminator_learning_rate)
    run.setup_replicated("discriminator", discriminator, optimizer)

    fine_tuning = stepwise({0: 1.0, begin: 0.0}) if begin else 0.0
    policy, near = PolicyGradient(config.clip_ratio, temperature), KLToReference(temperature)
    objective = fine_tuning * CrossEntropy() + ramp(1.0, begin) * policy + ramp(config.kl_weight, begin) * near
    objective += router_balance(student, config.models.router_balance_weight)
    distiller = run.setup(Distiller(student, objective, kernel=config.run.kernel), teacher)
    before = run.once("before.json", lambda: held_out.scores(student))
    run.restore()

    until_end = UntilEnd(tokenizer, student)  # a longer end would tell the teacher's text from the student's
    pairs, prompts = config.run.batch_size * config.samples_per_prompt, config.run.batch_size // run.fabric.world_size
    distiller.train()
    for given in run.steps(data):
        teachers_text = resample(given, until_end, run.step, data.pad_token_id)
        repeated = teachers_text * config.samples_per_prompt
        answers = resample(repeated, own_text, run.step, data.pad_token_id)
        window = teachers_text
        if run.step >= begin:
            with run.inference():
                log_probs = policy_log_probs(distiller, answers, temperature=temperature)
                near_N = model_log_probs(reference, answers, temperature)
                prompt_B = torch.arange(prompts, device=run.device).repeat(config.samples_per_prompt)
                rollout = rollout_of(answers, log_probs, None, near_N, scores_of(discriminator, answers), prompt_B)
            window = with_advantages(answers, rollout, reward)
        coefficients = objective.coefficients(run.step, run.counts(window))
        for batch in run.micro_batches(window):
            output = distiller(batch, None, coefficients)
            run.backward(output.loss, output.token_losses)
        for name, value in compare(discriminator, game, repeated, answers, pairs).items():
            run.note(name, value)
        run.note("truncated", own_text.truncated)
        run.update()
        run.update_replicated("discriminator", config.run.clip)
        run.validate(lambda: held_out.validate(student))
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
