"""Where a command begins and how it ends: a recipe or a tool from its flags, and its errors in one line each."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn, TypeVar

from gakd.cli import config_file
from gakd.cli.announce import loading_line, settings_line, waiting
from gakd.cli.read_flags import command_line, read_flags
from gakd.errors import InputError, RunError
from gakd.extras import check_needs, needs_of
from gakd.machine import is_first_process
from gakd.pipes import LEFT, leave_closed_pipes
from gakd.run.bounds import check_flags

Config = TypeVar("Config")


def start(main: Callable[[Config], None], paper: Config, demo: Config, description: str | None) -> None:
    """A recipe's entry: the command line is parsed and checked, then comes `main`, as `run` runs it."""

    def begin(arguments: Sequence[str]) -> None:
        config = parse(paper, demo, description, arguments)
        _check(config)
        if is_first_process():  # within a second of the start; what `main` imports takes several more
            named = _names_student(config_file.expand(arguments, paper))
            for line in filter(None, (settings_line(config) if named else None, loading_line(config))):
                print(line, flush=True)
            with waiting("Importing torch and transformers"):  # what every recipe's `main` begins with
                for module in ("gakd.run.training", "gakd.evaluation.held_out"):
                    import_module(module)
        main(config)

    run(begin, sys.argv[1:])


def start_tool(
    main: Callable[[Config], None], kind: type[Config], description: str | None, default: Config | None = None
) -> None:
    """A tool's entry: its flags, then `main`, as `run` runs it."""
    command = command_line()

    def begin(arguments: Sequence[str]) -> None:
        config = read_flags(kind, arguments, command, description, default)
        _check(config)
        main(config)

    run(begin, sys.argv[1:])


def _check(config: object) -> None:
    """What is wrong with the flags alone, and which packages they need that are missing."""
    check_flags(config)
    check_needs(needs_of(config))


def run(main: Callable[[Config], None], config: Config) -> None:
    """Run `main`; bad input ends with its one line and exit status 2, a broken run with 1; warnings take one line each."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    # transformers looks for torchao at import, whose line about its C++ extensions nobody here uses.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # from one library about another: nothing a user could act on
    try:
        main(config)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end("interrupted by hand; a training run goes on with --resume", 130)
    except RunError as error:
        _end(_line(error), 1)
    except ValueError as error:
        if not _is_ours(error):
            raise
        _end(_line(error), 2)
    except RuntimeError as error:
        import torch  # by now it is there, where the error is its; `gakd ls` and its like do without

        if torch.distributed.is_available() and _of_another_process(error):
            _end(
                f"another process of this run has ended, or gave no sign for too long ({_line(error)[:200]}): the last "
                f"checkpoint is whole; run again with --resume",
                1,
            )
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).partition(". ")[0]
        _end(
            f"{reason}: lower --micro-batch-size or --micro-batch-tokens (the result stays the same), add "
            f"--activation-checkpointing, or ask `gakd plan` what fits",
            1,
        )
    except BrokenPipeError:
        _end_unread()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _end(f"{error}: make room, then run again; a training run with --resume", 1)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # as rich leaves
            _end_unread()
        raise


def _of_another_process(error: RuntimeError) -> bool:
    """Whether what a process has waited for did not come, as gloo, NCCL and torch's store put it."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def _end(reason: str, status: int) -> NoReturn:
    """One line to whoever reads it, and the status."""
    with contextlib.suppress(OSError):
        print(f"error: {reason}", file=sys.stderr)
    leave_closed_pipes()
    sys.exit(status)


def _end_unread() -> NoReturn:
    leave_closed_pipes()
    _end(f"{LEFT}: a training run goes on with --resume", 1)


def _is_ours(error: ValueError) -> bool:
    """Whether an error says what to do: an `InputError`, or what a part of gakd raises of its arguments."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return isinstance(error, InputError) or raised_in.partition(".")[0] == "gakd"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def parse(paper: Config, demo: Config, description: str | None, arguments: Sequence[str] | None = None) -> Config:
    """Flags over defaults: the paper's once `--student` is named, else those of the demo, which fits two CPU cores.

    `--config FILE` sets flags that those of the command line override. InputError as in `read_flags`.
    """
    command = command_line()
    arguments = config_file.expand(sys.argv[1:] if arguments is None else arguments, paper)
    described = f"{(description or '').rstrip()}\n\n{config_file.HELP}"
    return read_flags(type(paper), arguments, command, described, paper if _names_student(arguments) else demo)


def _names_student(arguments: Sequence[str]) -> bool:
    return any(argument == "--student" or argument.startswith("--student=") for argument in arguments)
