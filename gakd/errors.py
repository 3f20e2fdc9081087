"""Errors of which a recipe shows the one line instead of a traceback."""


class InputError(ValueError):
    """What was asked for cannot be done; one line: what was got, what was expected, what to do."""


class RunError(RuntimeError):
    """A run cannot go on, for a reason that came up in it; one line: what happened, what is safe, what to do."""


def kind_of(thing: object) -> str:
    """What somebody gave in place of an object, in the words of a refusal."""
    return (
        f"the class {thing.__name__}: write {thing.__name__}(...)" if isinstance(thing, type) else type(thing).__name__
    )
