"""On-policy reverse KL: the student's own tokens, rewarded by the teacher's log-ratio as in tinker (MiniLLM, arXiv 2306.08543).

A policy gradient of the reverse KL at the student's own prefixes, from the drawn tokens alone: the teacher gives one number
a token, as a server would. The student's responses, several a prompt, are drawn anew at every step.

Without --student: the demo, SmolLM2-135M-Instruct into its own every third layer, minutes on two CPU cores.

On GAKD's data: python recipes/baselines/on_policy_reverse_kl.py --student Qwen3-0.6B --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the values of tinker's recipe. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, demo, start


@dataclass
class Config:
    discount: float = 0.0
    """Share of the next token's advantage in a token's own: 0 is the token's reward alone, 1 all that follow. [0]"""
    samples_per_prompt: int = 4
    """Responses that the student writes to each prompt of a step. [4]"""
    student_temperature: float = 1.0
    """Divides the student's logits when it writes, and those of both models in the reward. [1]"""
    student_max_new_tokens: int = 256
    """Tokens after which the student's response is cut; a cut one trains without an end."""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/on_policy_reverse_kl")))
DEMO = Config(
    student_max_new_tokens=40,
    models=demo.MODELS, data=demo.DATA, run=demo.run_config("runs/on_policy_reverse_kl-demo"), evaluation=demo.EVALUATION,
)  # fmt: skip


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd import Distiller, router_balance
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.losses import PolicyGradient
    from gakd.models import load_student
    from gakd.rewards import RewardToGo, TeacherLogRatio
    from gakd.run import Run
    from gakd.samplers import ModelSampler, Sampling, resample
    from gakd.samplers.rollouts import policy_log_probs, rollout_of, teacher_log_probs, with_advantages
    from gakd.teachers import load_reader, load_shared_tokenizer

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models, run.frozen_dtype, run.is_sharded)
        data = load_data(config.data, tokenizer, config.run.batch_size, prompts_alone=True)
        teacher = load_reader(config.models, run.teacher_dtype, run.loading_device)
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    temperature = config.student_temperature
    sampling = Sampling(config.student_max_new_tokens, temperature, seed=run.seed)
    own_text = ModelSampler(student, tokenizer, sampling, config.data.max_length, teacher.head.vocab_size)
    reward = TeacherLogRatio() >> RewardToGo(config.discount)

    objective = 1.0 * PolicyGradient(clip=None, temperature=temperature)
    objective += router_balance(student, config.models.router_balance_weight)
    distiller = run.setup(Distiller(student, objective, kernel=config.run.kernel), teacher)
    before = run.once("before.json", lambda: held_out.scores(student))
    run.restore()

    distiller.train()
    for window in run.steps(data):
        window = resample(window * config.samples_per_prompt, own_text, run.step, data.pad_token_id)
        with run.inference():
            teacher_N = teacher_log_probs(window, [teacher(batch) for batch in window], temperature)
            rollout = rollout_of(window, policy_log_probs(distiller, window, temperature=temperature), teacher_N)
        window = with_advantages(window, rollout, reward)
        coefficients = objective.coefficients(run.step, run.counts(window))
        for batch in run.micro_batches(window):
            output = distiller(batch, None, coefficients)
            run.backward(output.loss, output.token_losses)
        run.note("truncated", own_text.truncated)
        run.update()
        run.validate(lambda: held_out.validate(student))
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
