"""MiniLLM: reverse KL of whole texts, by policy gradient on text of a teacher-mixed sampler (MiniLLM, arXiv 2306.08543).

Its three parts: the next token's reverse KL in closed form, a clipped policy gradient of what follows (length-normalised,
whitened), and a language-modelling loss, here on the dataset's responses, the paper's being on a pretraining corpus.
What follows a token does not hold its own reward, as in the paper's equation 3; the release counts it in both parts.

Without --student: the demo, SmolLM2-135M-Instruct into its own every third layer, minutes on two CPU cores.

On GAKD's data: python recipes/baselines/minillm.py --student Qwen3-0.6B --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the values of its release. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    teacher_share: float = 0.2
    """Share of the teacher's distribution in the one that each token is drawn from, 0 to 1. [0.2]"""
    reward_scale: float = 2.0
    """Factor of a token's reward, log p - log q, before it is clipped to +-100. [2: it divides by 0.5]"""
    discount: float = 0.95
    """Factor of each further token's reward in a token's advantage, 0 to 1. [0.95]"""
    clip_ratio: float = 0.2
    """How far a token's probability may move from that at sampling before its gradient is cut. [0.2]"""
    updates: int = 4
    """Optimizer updates on each step's text. [4]"""
    language_weight: float = 1.0
    """Weight of the language-modelling loss, half cross entropy and half forward KL, on the dataset's responses. [1]"""
    kl_temperature: float = 1.0
    """Divides both models' logits in that KL, which is multiplied by its square; reward and reverse KL are at 1."""
    student_max_new_tokens: int = 256
    """Tokens after which a written response is cut; a cut one trains without an end. [256]"""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/minillm")))
DEMO = Config(
    student_max_new_tokens=40, updates=2,
    models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/minillm-demo"), evaluation=demo.EVALUATION,
)  # fmt: skip


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd import CrossEntropy, Distiller, ForwardKL, ReverseKL, router_balance
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.losses import PolicyGradient
    from gakd.models import load_student
    from gakd.rewards import Clip, LengthNormalize, RewardToGo, SingleStepDecomposition, TeacherLogRatio, Whiten
    from gakd.run import Run
    from gakd.samplers import Sampling, TeacherMixedSampler, resample
    from gakd.samplers.rollouts import policy_log_probs, rollout_of, teacher_log_probs, with_advantages
    from gakd.teachers import load_reader, load_shared_tokenizer

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models, run.frozen_dtype, run.is_sharded)
        data = load_data(config.data, tokenizer, config.run.batch_size, prompts_alone=config.language_weight == 0)
        teacher = load_reader(config.models, run.teacher_dtype, run.loading_device)
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    sampling = Sampling(config.student_max_new_tokens, seed=run.seed)
    share, longest = config.teacher_share, config.data.max_length
    mixed_text = TeacherMixedSampler(student, teacher.model, tokenizer, share, sampling, longest)
    reward = (
        TeacherLogRatio(config.reward_scale) >> Clip(-100, 100) >> RewardToGo(config.discount)
        >> LengthNormalize() >> SingleStepDecomposition(config.discount) >> Whiten(over_ranks=run.over_ranks)
    )  # fmt: skip

    half, language_kl = config.language_weight / 2, ForwardKL(config.kl_temperature)
    objective = PolicyGradient(config.clip_ratio) + ReverseKL() + half * CrossEntropy() + half * language_kl
    objective += router_balance(student, config.models.router_balance_weight)
    distiller = run.setup(Distiller(student, objective, kernel=config.run.kernel), teacher)
    before = run.once("before.json", lambda: held_out.scores(student))
    run.restore()

    distiller.train()
    for text in run.steps(data):
        window = resample(text, mixed_text, run.step, data.pad_token_id)
        with run.inference():
            taught, taught_text = [[teacher(batch) for batch in batches] for batches in (window, text)]
            rollout = rollout_of(window, policy_log_probs(distiller, window), teacher_log_probs(window, taught))
        window = with_advantages(window, rollout, reward)
        counts, text_counts = run.counts(window), run.counts(text, "cross_entropy", "forward_kl")
        policy = objective.coefficients(run.step, counts).only("policy_gradient", "reverse_kl")
        language = objective.coefficients(run.step, text_counts).only("cross_entropy", "forward_kl")
        work = [(*pair, policy) for pair in zip(window, taught, strict=True)]
        work += [(*pair, language) for pair in zip(text, taught_text, strict=True)]
        for update in range(config.updates):
            for batch, teacher_output, coefficients in run.micro_batches(work):
                output = distiller(batch, teacher_output, coefficients)
                run.backward(output.loss, output.token_losses if update == 0 else {})
            run.update()
        run.note("truncated", mixed_text.truncated)
        run.validate(lambda: held_out.validate(student))
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
