"""The error of bad input: a recipe shows its one line instead of a traceback."""


class InputError(ValueError):
    """What was asked for cannot be done; one line: what was got, what was expected, what to do."""
