"""DistiLLM-2: skew forward KL on the teacher's text + skew reverse KL on the student's (DistiLLM-2, arXiv 2503.07067).

The teacher first answers the training prompts into OUTPUT_DIR/teacher-text: see recipes/README.md. The student answers the
prompts of a step anew, where the paper lets it answer all of them before each epoch. Both of the paper's curricula are on,
each with a switch; its release has both off. Means are over tokens, the release's over sequences.

Without --student: the demo, SmolLM2-135M-Instruct into its own every third layer, minutes on two CPU cores.

The paper's setting: python recipes/baselines/distillm2.py --student Qwen3-0.6B --teacher Qwen3-8B --dataset dolly

In --help, [brackets] hold the paper's values. Without --student, the defaults shown are those of the demo.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gakd.cli import DataConfig, EvaluationConfig, ModelConfig, RunConfig, TeacherTextConfig, demo, start


@dataclass
class Config:
    alpha: float = 0.1
    """Share of a distribution in its own mixture, 0 to 1; the largest one where it adapts. [0.1]"""
    kl_temperature: float = 1.0
    """Divides both models' logits in the divergences, which are multiplied by its square."""
    adaptive_alpha: bool = True
    """Give each response a smaller alpha the closer the models are on it, down to 0.01. [on]"""
    growing_weight: bool = True
    """Move weight from the teacher's text to the student's, from 1 : 1 to 0.5 : 1.5 in half of the run. [on]"""
    student_temperature: float = 0.8
    """Divides the student's logits when it writes. [0.8]"""
    student_max_new_tokens: int = 256
    """Tokens after which the student's response is cut; a cut one trains without an end."""
    models: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    text: TeacherTextConfig = field(default_factory=lambda: TeacherTextConfig(teacher_temperature=0.8))
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PAPER = Config(run=RunConfig(output_dir=Path("runs/distillm2")))
DEMO = Config(
    student_max_new_tokens=40, models=demo.MODELS, data=demo.DATA, text=demo.TEACHER_TEXT,
    run=demo.run_config("runs/distillm2-demo"), evaluation=demo.EVALUATION,
)  # fmt: skip


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd import Distiller, SkewForwardKL, SkewReverseKL, ramp, router_balance
    from gakd.data import load_data
    from gakd.evaluation import HeldOut, conclude
    from gakd.models import load_student
    from gakd.rewards import adaptive_skew
    from gakd.run import Run
    from gakd.samplers import ModelSampler, Sampling, resample, teacher_examples
    from gakd.samplers.rollouts import policy_log_probs, rollout_of, teacher_log_probs, with_rows
    from gakd.teachers import load_reader, load_shared_tokenizer

    run = Run(config.run, config)
    with run.main_first():
        tokenizer = load_shared_tokenizer(config.models)
        student = load_student(config.models, run.frozen_dtype, run.is_sharded)
        data = load_data(config.data, tokenizer, config.run.batch_size, prompts_alone=True)
        teacher = load_reader(config.models, run.teacher_dtype, run.loading_device)
        data = data._replace(train=teacher_examples(teacher, tokenizer, data, config.text, config.run))
    held_out = HeldOut(teacher, tokenizer, data, config.evaluation)

    sampling = Sampling(config.student_max_new_tokens, config.student_temperature, seed=run.seed)
    own_text = ModelSampler(student, tokenizer, sampling, config.data.max_length, teacher.head.vocab_size)
    shift = ramp(0.5 if config.growing_weight else 0.0, 0, max(run.total_steps(data) // 2, 1))

    on_teachers = SkewForwardKL(config.alpha, config.kl_temperature)
    on_students = SkewReverseKL(config.alpha, detach_mixture=True, temperature=config.kl_temperature)
    objective = (lambda step: 1 - shift(step)) * on_teachers + (lambda step: 1 + shift(step)) * on_students
    objective += router_balance(student, config.models.router_balance_weight)
    distiller = run.setup(Distiller(student, objective, kernel=config.run.kernel), teacher)
    before = run.once("before.json", lambda: held_out.scores(student))
    run.restore()

    distiller.train()
    for teachers_text in run.steps(data):
        students_text = resample(teachers_text, own_text, run.step, data.pad_token_id)
        work = []
        for text, term in ((teachers_text, on_teachers), (students_text, on_students)):
            coefficients = objective.coefficients(run.step, run.counts(text, term.name)).only(term.name)
            taught = [teacher(batch) for batch in text]
            if config.adaptive_alpha:
                with run.inference():
                    log_probs = policy_log_probs(distiller, text, taught)
                    rollout = rollout_of(text, log_probs, teacher_log_probs(text, taught))
                alpha_BT = adaptive_skew(rollout, term is on_teachers, config.alpha, run.over_ranks)
                text = with_rows(text, rollout, {"skew_alpha": alpha_BT})
            work += [(batch, teacher_output, coefficients) for batch, teacher_output in zip(text, taught, strict=True)]
        for batch, teacher_output, coefficients in run.micro_batches(work):
            output = distiller(batch, teacher_output, coefficients)
            run.backward(output.loss, output.token_losses)
        run.note("truncated", own_text.truncated)
        run.update()
        run.validate(lambda: held_out.validate(student))
        run.finish_step(objective)

    conclude(run.folder, student, held_out, before, run.is_main)
    run.close()


if __name__ == "__main__":
    start(main, PAPER, DEMO, __doc__)
