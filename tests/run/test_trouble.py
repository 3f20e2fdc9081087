"""What hinders a run from outside: nobody reads its output, its folder is gone, another process is silent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gakd.cli.entry import run as run_command
from gakd.errors import RunError
from gakd.run.step_log import StepLog
from tests.recipe_runs import (
    RECIPES,
    ROOT,
    arguments,
    assert_identical,
    environment,
    make_material,
    metrics,
    run_here,
)

FLAGS = ("--steps", "24", "--save-every", "0", "--evaluate-every", "0")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def straight(material, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("straight") / "run"
    run_here("gakd", *arguments(material, output, *FLAGS))
    return output


def error_lines(text: str) -> list[str]:
    assert "Traceback" not in text
    assert "BrokenPipe" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("together", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_pipe_that_nobody_reads_any_more_ends_the_run_with_its_step_saved(material, straight, tmp_path, together):
    """`| head -1` after the first lines, and with `together` what is printed of errors goes into that pipe too."""
    output = tmp_path / "run"
    read, write = os.pipe()
    command = [sys.executable, str(RECIPES["gakd"]), *arguments(material, output, *FLAGS)]
    process = subprocess.Popen(
        command, stdout=write, stderr=write if together else subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )
    os.close(write)
    deadline = time.monotonic() + 300
    while not (output / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.close(read)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    if not together:
        (line,) = error_lines(said)
        assert "nobody reads the output any more (its pipe is closed)" in line
    saved = [path.name for path in (output / "checkpoints").iterdir()]
    assert len(saved) == 1
    if f"step-{24}" not in saved and not together:
        assert f"{saved[0].replace('-', ' ')}, leaving; the same command with --resume goes on" in line
    run_here("gakd", *arguments(material, output, *FLAGS, "--resume"))
    assert_identical(output, straight)


def test_a_pipe_that_is_closed_from_the_beginning_is_one_line(material, tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(RECIPES["gakd"]), *arguments(material, tmp_path / "run", "--lora-rank", "2")]
    result = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(), check=False
    )
    os.close(write)
    assert result.returncode == 1
    assert error_lines(result.stderr) == [
        "error: nobody reads the output any more (its pipe is closed): a training run goes on with --resume"
    ]


def at_step(step: int, happens):
    """What happens once that step is logged."""
    finish = StepLog.finish_step

    def finished(self, number, *rest):
        if number == step:
            happens()
        return finish(self, number, *rest)

    return finished


def test_a_folder_that_is_gone_ends_the_run_with_its_step_saved_where_it_was(material, straight, tmp_path, monkeypatch):
    output = tmp_path / "run"
    monkeypatch.setattr(StepLog, "finish_step", at_step(5, lambda: shutil.rmtree(output)))
    with pytest.raises(
        RunError, match=r"cannot write .*metrics.csv \(No such file or directory\): saved step 5, leaving"
    ):
        run_here("gakd", *arguments(material, output, *FLAGS))
    monkeypatch.undo()
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-5"]
    with pytest.warns(UserWarning, match="config.json is gone"):
        run_here("gakd", *arguments(material, output, *FLAGS, "--resume"))
    shutil.copy(straight / "metrics.csv", output / "metrics.csv")  # of the first five steps nothing is left
    assert_identical(output, straight)


def test_where_nothing_can_be_saved_that_is_said(material, tmp_path, monkeypatch):
    output = tmp_path / "run"

    def replaced() -> None:
        shutil.rmtree(output)
        output.write_text("a file in its place")

    monkeypatch.setattr(StepLog, "finish_step", at_step(5, replaced))
    with pytest.raises(RunError, match=r"cannot write .*step-5: .*; there is none before it"):
        run_here("gakd", *arguments(material, output, *FLAGS))


def test_a_log_without_room_ends_the_run_with_its_step_saved(material, straight, tmp_path, monkeypatch):
    output = tmp_path / "run"

    def full(*_) -> None:
        raise OSError(28, "No space left on device", "metrics.csv")

    monkeypatch.setattr("gakd.logging.metrics.MetricsLog.append", full)
    with pytest.raises(RunError, match=r"cannot write metrics.csv \(No space left on device\): saved step 1, leaving"):
        run_here("gakd", *arguments(material, output, *FLAGS))
    monkeypatch.undo()
    run_here("gakd", *arguments(material, output, *FLAGS, "--resume"))
    assert metrics(output) == metrics(straight)[1:]


@pytest.mark.parametrize("kind", ["print", "rich"])
def test_a_command_whose_output_nobody_reads_ends_in_a_line(kind, tmp_path):
    code = "from gakd.cli.entry import run\nfrom rich.console import Console\n"
    code += "def main(_):\n for i in range(100000): "
    code += "print('x' * 100)\n" if kind == "print" else "Console().print('x' * 100)\n"
    code += "run(main, None)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) == 1
    assert len(error_lines(said)) == 1
    assert len(said.splitlines()) == 1


def test_a_status_of_ones_own_stays(capsys):
    with pytest.raises(SystemExit) as left:
        run_command(lambda _: sys.exit(7), None)
    assert left.value.code == 7
    assert capsys.readouterr().err == ""


# ---- several processes ----

TWO = '''
"""A run of two processes, in which patience is short."""
import sys, time
from datetime import timedelta
from gakd.cli import run
from gakd.evaluation import HeldOut
from gakd.run import Run
import gakd.run.launch as launch
from tests.recipe_runs import run_here

launch.LONGEST_SILENCE = timedelta(seconds=25)
what, *flags = sys.argv[1:]
update, validate = Run.update, HeldOut.validate
def silent(self):
    if self.step == 3 and self.rank == 1:
        time.sleep(600)
    update(self)
def slow(self, student):
    time.sleep(40)
    return validate(self, student)
if what == "silent":
    Run.update = silent
else:
    HeldOut.validate = slow
run(lambda flags: run_here("gakd", *flags), flags)
'''


def two_processes(tmp_path: Path, what: str, flags: list[str]) -> tuple[int, str]:
    """The first one's exit status, and what both have printed; the other may outlive it, and is ended."""
    script, printed = tmp_path / "two.py", tmp_path / "printed"
    script.write_text(TWO)
    command = [sys.executable, str(script), what, *flags]
    with printed.open("w") as file:
        own = environment() | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=own, start_new_session=True)
        try:
            return process.wait(timeout=300), printed.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_gives_no_sign_ends_the_others_in_a_line(material, tmp_path):
    output = tmp_path / "run"
    flags = arguments(material, output, "--devices", "2", "--steps", "6", "--save-every", "2", "--evaluate-every", "0")
    status, printed = two_processes(tmp_path, "silent", flags)
    assert status == 1
    (line,) = error_lines(printed)
    assert "another process of this run has ended, or gave no sign for" in line
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-2"]


@pytest.mark.slow
def test_an_evaluation_may_take_longer_than_the_longest_silence(material, tmp_path):
    output = tmp_path / "run"
    flags = arguments(material, output, "--devices", "2", "--steps", "2", "--evaluate-every", "2")
    status, printed = two_processes(tmp_path, "slow", flags)
    assert status == 0, printed[-3000:]
    assert (output / "after.json").exists()


@pytest.mark.slow
def test_two_processes_listen_on_loopback_alone(material, tmp_path):
    """Read off /proc: every TCP socket in state LISTEN of the run's processes."""
    tcp = Path("/proc/net/tcp")
    if not tcp.exists():
        pytest.skip("needs Linux's /proc")
    output = tmp_path / "run"
    command = [sys.executable, str(RECIPES["gakd"]), *arguments(material, output, "--devices", "2", *FLAGS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, env=environment())
    seen: set[str] = set()
    while process.poll() is None and not (output / "metrics.csv").exists():
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    for own in [str(process.pid), *children.split()]:
        inodes: set[str] = set()
        for link in Path(f"/proc/{own}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since it was listed
                inodes.add(os.readlink(link))
        for table in (tcp, Path("/proc/net/tcp6")):
            rows = [row.split() for row in table.read_text().splitlines()[1:]] if table.exists() else []
            seen |= {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert seen
    assert seen <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
