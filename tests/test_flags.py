"""What is taken for a secret in the environment: by the parts of a variable's name, and never a path."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gakd.errors import InputError
from gakd.flags import check

VALUE = "hunter2hunter2"


def refused(name: str, value: str, monkeypatch) -> bool:
    @dataclass
    class Config:
        output_dir: str = f"runs/{value}"

    monkeypatch.setenv(name, value)
    try:
        check(Config(), {})
    except InputError as error:
        return value not in str(error)
    return False


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY", "HF_TOKEN", "hf_token", "AWS_SECRET_ACCESS_KEY", "API_KEY_OPENAI", "OPENAI_API_KEY_2", "API_KEYS",
        "DB_PASS", "DB_PASSWD", "MYSQL_PWD", "GPG_PASSPHRASE", "GITHUB_PAT", "db_password", "REGISTRY_AUTH", "OPENAIKEY",
        "GOOGLE_CREDENTIALS", "SECRET", "HF_TOKENS",
    ],
)  # fmt: skip
def test_names_of_secrets(name, monkeypatch):
    assert refused(name, VALUE, monkeypatch)
    assert not refused(name, "short", monkeypatch)
    for path in ("/home/me/key.json", "~/store/keys", "./key.json", "../key.json"):
        assert not refused(name, path, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "PATTERN",
        "COMPASS",
        "KEYBOARD",
        "TOKENIZERS_PARALLELISM",
        "XAUTHORITY",
        "PATHS",
        "AUTHOR",
        "PASSAGE",
        "PATENT_NO",
    ],
)
def test_names_of_other_things(name, monkeypatch):
    assert not refused(name, VALUE, monkeypatch)
