"""What an evaluation holds: the teacher's hidden states of held-out text, and what writes text of its own."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig

from gakd.models.parts import backbone_of
from gakd.models.writing_bytes import bytes_of_sequence, cache_of
from gakd.planning.footprint import anatomy, remembered
from gakd.planning.layers import Sample, build
from gakd.planning.live_bytes import fill_
from gakd.planning.probe import as_on_a_gpu
from gakd.planning.setting import FLOAT32, HALF, Setting


def held_out_bytes(setting: Setting) -> int:
    """The teacher's hidden states of the validation and test examples whose batches are this device's, kept for the run."""
    if setting.teacher is None:
        return 0
    examples = -(-2 * setting.config.examples // setting.world_size)
    return setting.teacher_bytes * examples * setting.supervised * setting.teacher.width


def copy_bytes(setting: Setting) -> int:
    """The copy that writes: of weights in float32 alone, on a GPU, and of no model that is cut."""
    if not setting.on_gpu or setting.parts > 1 or setting.bytes < FLOAT32:
        return 0
    half = setting.frozen_dtype.itemsize < FLOAT32
    return HALF * (setting.student.trainable if half else setting.student.parameters)


def sequences_bytes(setting: Setting) -> int:
    """Caches, logits and the prompts' forward of one batch, of the student or of a teacher that is in memory."""
    models = [setting.student_config]
    if setting.teacher_config is not None and not setting.config.teacher_cache:
        models.append(setting.teacher_config)
    prompt = max(setting.config.length - setting.supervised, 1)
    itemsize = HALF if setting.on_gpu else FLOAT32
    return setting.config.evaluation_batch_size * max(
        bytes_of_sequence(anatomy(model).model, cache_entries(model), prompt, setting.config.max_new_tokens, itemsize)
        for model in models
    )


@remembered
def cache_entries(config: PreTrainedConfig) -> tuple[int, int]:
    """A cache's entries of one sequence: whatever its length, and of each token. None of a model that has no cache as it is
    asked here: it reads its whole text again for each token, or its plan says too little.
    """
    found = anatomy(config)

    def counted(sample: Sample) -> tuple[int, int]:
        model = as_on_a_gpu(build(sample.config), found.probe.fused)
        with FakeTensorMode(), torch.no_grad():
            fill_(model, torch.float32)
            backbone = backbone_of(model).eval()
            return cache_of(
                lambda length: backbone(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=True)
            )

    try:
        counts = [(counted(sample), sample.times) for sample in found.samples]
    except Exception:  # whatever a forward with a cache raises that asks for values
        return 0, 0
    fixed, per_token = (max(sum(times * values[at] for values, times in counts), 0) for at in range(2))
    return fixed, per_token
