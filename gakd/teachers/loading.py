"""The teacher that a configuration asks for, in memory or in a cache, once its tokenizer is known to be the student's."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from gakd.data import Data
from gakd.models.config import ModelConfig
from gakd.models.errors import ModelError
from gakd.models.fingerprints import tokenizer_fingerprint
from gakd.models.loading import check_tokenizers, load_model, load_tokenizer
from gakd.teachers.cache import TeacherCache, read_manifest
from gakd.teachers.cached import CachedTeacher, refuse_missing, refuse_stale
from gakd.teachers.local import LocalTeacher


def load_shared_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The student's tokenizer, once it is known to be the teacher's too, or the one of the teacher cache."""
    student = load_tokenizer(config.student, config.trust_remote_code)
    if config.teacher_cache is not None:
        check_cached_tokenizer(student, config.student, config.teacher_cache)
    elif config.teacher is not None:
        teacher = load_tokenizer(config.teacher, config.trust_remote_code)
        check_tokenizers(student, teacher, (config.student, config.teacher))
    return student


def check_cached_tokenizer(student: PreTrainedTokenizerBase, name: str, teacher_cache: Path) -> None:
    """As `check_tokenizers`, against the fingerprint in a teacher cache: the teacher need not be on this machine."""
    ours, theirs = tokenizer_fingerprint(student), read_manifest(teacher_cache)["settings"]["tokenizer"]
    if ours["vocabulary"] != theirs["vocabulary"]:
        raise ModelError(
            f"student {name} has another tokenizer ({ours['tokens']} tokens) than the teacher cache {teacher_cache} "
            f"({theirs['tokens']} tokens): token-level losses need one tokenizer; choose a student of the teacher's family"
        )


def load_teacher(
    config: ModelConfig, data: Data, dtype: torch.dtype, device: torch.device
) -> LocalTeacher | CachedTeacher:
    """The teacher on its device, in `dtype`; or the cache of it, in the dtype it was cached in.

    On the meta device it is without its weights until it is cut (`LocalTeacher.shard`).

    A cache is refused (CacheError, with the reason) where it is damaged, where it lacks an example of the data, and where
    it is not the configured teacher's: if that model is on this machine, its files must be those the cache was made
    from (same sizes and modification times are trusted, anything else is hashed); if not, its name must be the
    cached one. Without a name the cache's own counts.
    """
    if config.teacher_cache is not None:
        cache = TeacherCache(config.teacher_cache)
        refuse_stale(cache, config.teacher)
        refuse_missing(cache, data, config)
        return CachedTeacher(cache, device)
    return load_reader(config, dtype, device)


def load_reader(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LocalTeacher:
    """A teacher that reads what a student writes; ModelError for a cached one, which has read its texts already."""
    if config.teacher_cache is not None:
        raise ModelError("the teacher reads what the student writes, a teacher cache cannot: leave out --teacher-cache")
    if config.teacher is None:
        raise ModelError("this recipe learns from a teacher: give --teacher, for example Qwen3-8B")
    return LocalTeacher(load_model(config.teacher, dtype, None, config.trust_remote_code, device))
