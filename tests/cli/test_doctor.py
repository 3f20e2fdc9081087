"""`gakd doctor`: what it calls a problem, what it shows, that it asks nobody unless told to."""

from __future__ import annotations

import socket

import pytest
from packaging.requirements import Requirement

from gakd.cli import doctor
from gakd.cli.doctor import Devices, DoctorConfig, device_problems, extra_rows, installed, problems, requirements

REQUIRED = [
    Requirement("torch>=2.6"), Requirement("transformers>=5.7"), Requirement("rich>=13.7"),
    Requirement('peft>=0.18; extra == "lora"'), Requirement('torchao<0.16,>=0.13; extra == "torchtune"'),
]  # fmt: skip
GOOD = {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0", "rich": "15.0.0"}
GPU = Devices("12.8", ["NVIDIA H100"], [85.0], [9], driver=True, compiler=True)
CPU = Devices(None, [], [], [], driver=False, compiler=False)


@pytest.mark.parametrize(
    "versions",
    [
        {}, {"peft": "0.18.1", "torchao": "0.15.0", "torchtune": "0.6.1"}, {"peft": "0.21.2"}, {"torchao": "0.17.0"},
        {"peft": "0.21.2", "torchao": "0.16.0"}, {"python": "3.11.0"}, {"torch": "2.6.0+cu124"}, {"torch": "2.14.0a0+git1"},
        {"peft": None, "torchao": None},
    ],
)  # fmt: skip
def test_versions_that_work_together_are_no_problem(versions):
    assert problems(GOOD | versions, REQUIRED) == []


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"peft": "0.19.0", "torchao": "0.15.0"}, "peft 0.19.0 refuses torchao 0.15.0, so LoRA fails: pip install 'peft"),
        ({"torchtune": "0.6.1", "torchao": "0.16.0"}, "torchtune 0.6.1 cannot be imported with torchao 0.16.0: pip install"),
        ({"torchtune": "0.6.1"}, "torchtune 0.6.1 cannot be imported with torchao missing: pip install 'torchao>=0.13,<0.16'"),
        ({"torchtune": "0.6.1", "torchao": "0.12.0"}, "torchtune 0.6.1 cannot be imported with torchao 0.12.0"),
        ({"transformers": "5.6.2"}, "transformers 5.6.2 is not >=5.7 (older ones cannot be planned for): pip install 'tr"),
        ({"torch": "2.5.1+cu124"}, "torch 2.5.1+cu124 is not >=2.6 (older ones are not tested): pip"),
        ({"rich": None}, "rich is not installed: pip install 'rich>=13.7'"),
        ({"peft": "0.17.0"}, "peft 0.17.0 is not >=0.18: pip install 'peft>=0.18'"),
        ({"python": "3.10.13"}, "Python 3.10.13 is too old: gakd needs 3.11 or newer"),
    ],
)  # fmt: skip
def test_versions_that_do_not_work_together_are_named_with_what_to_do(versions, says):
    (problem,) = problems(GOOD | versions, REQUIRED)
    assert problem.startswith(says)
    assert "\n" not in problem


def test_problems_add_up():
    versions = GOOD | {"peft": "0.21.2", "torchao": "0.15.0", "torch": "2.4.0", "rich": None}
    assert len(problems(versions, REQUIRED)) == 3


@pytest.mark.parametrize(
    ("devices", "triton", "says"),
    [
        (CPU, None, []),
        (GPU, "3.4.0", []),
        (GPU, None, ["triton is missing, which --kernel auto compiles with on a GPU"]),
        (GPU._replace(compiler=False), "3.4.0", ["a C compiler is missing"]),
        (CPU._replace(driver=True), None, ["this machine has NVIDIA's driver, torch 2.13.0+cpu is built without CUDA"]),
        (
            GPU._replace(names=[], gigabytes=[], capabilities=[]),
            "3.4.0",
            ["torch is built for CUDA 12.8 and sees no GPU"],
        ),
        (GPU._replace(names=["V100"], capabilities=[7]), "3.4.0", ["V100 has no bfloat16 arithmetic"]),
    ],
)
def test_devices_that_are_not_used_as_they_could_be(devices, triton, says):
    found = device_problems(devices, GOOD | {"triton": triton})
    assert len(found) == len(says)
    assert all(problem.startswith(start) for problem, start in zip(found, says, strict=True))


def test_the_package_itself_is_read():
    assert {"torch", "transformers", "tyro", "datasets"} <= {one.name for one in requirements() if one.marker is None}
    assert {"peft", "openai"} <= {one.name for one in requirements() if one.marker is not None}
    assert installed()["torch"] is not None


def test_an_extra_shows_what_it_brings_or_how_to_get_it(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "peft" else "1.0")
    rows = dict(extra_rows())
    assert rows["lora"] == "peft missing: pip install 'gakd[lora]'"
    assert rows["api"] == "openai 1.0"


@pytest.fixture
def quiet(monkeypatch):
    """A machine without known problems, whose network may not be touched."""

    def refuse(*_):
        raise AssertionError("nothing may leave the machine")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(doctor, "requirements", lambda: REQUIRED)
    monkeypatch.setattr(doctor, "installed", lambda: GOOD)
    monkeypatch.setattr(doctor, "seen_devices", lambda: CPU)
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")


def test_it_prints_what_there_is_and_asks_nobody(quiet, capsys):
    assert doctor.main(DoctorConfig()) is None
    printed = capsys.readouterr().out
    for text in (
        "Python",
        "CPU cores",
        "memory",
        "free disk",
        "CPU alone",
        "2.13.0+cpu",
        "gakd[",
        "--online asks",
        "a token is set",
    ):
        assert text in printed
    assert "No known incompatibility." in printed
    assert "hf_0123456789" not in printed


def test_it_ends_with_status_1_where_something_is_known_not_to_work(quiet, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda: GOOD | {"peft": "0.19.0", "torchao": "0.15.0"})
    with pytest.raises(SystemExit) as stopped:
        doctor.main(DoctorConfig())
    assert stopped.value.code == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert "peft 0.19.0 refuses torchao 0.15.0" in line


@pytest.mark.parametrize(
    ("offline", "online", "says"),
    [
        (True, True, "offline (HF_HUB_OFFLINE)"),
        (False, False, "not asked (--online asks)"),
        (False, True, "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_the_hub_is_asked_on_request_alone(offline, online, says):
    assert doctor.hub_state("http://127.0.0.1:9", offline, online).startswith(says)
