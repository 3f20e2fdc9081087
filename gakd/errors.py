"""Errors of which a recipe shows the one line instead of a traceback."""


class InputError(ValueError):
    """What was asked for cannot be done; one line: what was got, what was expected, what to do."""


class RunError(RuntimeError):
    """A run cannot go on, for a reason that came up in it; one line: what happened, what is safe, what to do."""
