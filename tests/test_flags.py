"""What is taken for a secret of the environment, and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from gakd.errors import InputError
from gakd.flags import check

SECRET = "hf_0123456789abcdefghij"


@dataclass
class Flags:
    output_dir: str | Path


def taken(output_dir: str) -> bool:
    try:
        check(Flags(output_dir), {})
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY", "OPENAI_API_KEY_2", "API_KEY_OPENAI", "openai_api_key", "API_KEY", "APIKEY", "MISTRAL_APIKEY", "KEY",
        "SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "hf_token", "HF_TOKEN2", "HF_TOKEN_2", "GITHUBTOKEN", "TOKEN",
        "CLIENT_SECRET", "PGPASSWORD", "DB_PASSWORD", "MAIL_PASS", "mail_pass", "MAIL_PASSWD", "GITHUB_PAT", "CREDENTIALS",
        "GIT_CREDENTIAL", "NPM_AUTH", "AUTH", "API_KEYS", "HF_TOKENS", "MYSQL_PWD", "GPG_PASSPHRASE",
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_name(name, monkeypatch):
    monkeypatch.setenv(name, f" {SECRET}\n")  # as a file gives it
    for value in (SECRET, f"runs/{SECRET}/1", Path("runs") / SECRET):
        with pytest.raises(InputError, match="--output-dir holds a password or a key") as caught:
            check(Flags(value), {})
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "XAUTHORITY", "KEYBOARD", "PATH", "MONKEY", "TOKENIZERS_PARALLELISM", "COMPASS", "PATTERN", "BYPASS", "HOSTKEYBOARD",
        "AUTHOR", "PASSENGER", "SSH_AUTH_SOCK", "KEY_REPEAT", "PAT_FILE", "OPENAI_BASE_URL", "SECRETARY", "COMPAT",
        "PATENT_NO", "OLDPWD",
    ],
)  # fmt: skip
def test_other_names_hold_no_secret(name, monkeypatch):
    monkeypatch.setenv(name, SECRET)
    assert taken(f"runs/{SECRET}")


@pytest.mark.parametrize("name", ["HF_TOKEN", "GOOGLE_CREDENTIALS", "SSH_AUTH"])
@pytest.mark.parametrize(
    "value", ["/etc/x/y/z", "~/store", "./runs/of-mine", "../runs", "file:/a/key", "/usr/../etc/key.json"]
)
def test_a_path_is_no_secret(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert taken(f"{value}/runs")


def test_a_folder_that_is_there_is_no_secret(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secrets" / "store").mkdir(parents=True)
    for value in ("secrets/store", "secrets/store/key.json", str(tmp_path)):
        monkeypatch.setenv("MY_CREDENTIALS", value)
        assert taken(value)


@pytest.mark.parametrize("value", ["", "none", "false", "EMPTY", "1234567"])
def test_a_short_value_is_no_secret(value, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", value)
    assert taken(f"runs/{value}")


@pytest.mark.parametrize("value", ["/b+Zm9vYmFyYmF6/cXV4", "Zm9vYmFy/YmF6cXV4", "12345678", "a:b@c/d/e"])
def test_a_key_may_hold_strokes(value, monkeypatch):
    monkeypatch.setenv("CLIENT_SECRET", value)
    with pytest.raises(InputError, match="holds a password or a key"):
        check(Flags(f"runs/x{value}"), {})
