"""Who is learned from: a model in memory, a cache of its hidden states, a model of another tokenizer.

Imports `models`, `data` and what is below them.
"""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.teachers.aligned import AlignedTeacher, load_aligned_teacher
    from gakd.teachers.cache import CacheError, TeacherCache
    from gakd.teachers.cache_writer import CacheWriter
    from gakd.teachers.cached import CachedTeacher
    from gakd.teachers.loading import load_reader, load_shared_tokenizer, load_teacher
    from gakd.teachers.local import LocalTeacher

__getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "AlignedTeacher",
    "CacheError",
    "CacheWriter",
    "CachedTeacher",
    "LocalTeacher",
    "TeacherCache",
    "load_aligned_teacher",
    "load_reader",
    "load_shared_tokenizer",
    "load_teacher",
]
