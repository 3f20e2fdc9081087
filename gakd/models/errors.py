"""What is wrong with a model."""

from gakd.errors import InputError


class ModelError(InputError):
    """A model or tokenizer that cannot be used as asked; one line: what was got, what was expected, what to do."""
