"""A finished student on the Hugging Face hub: what would keep it from there, said before training, and the upload."""

from __future__ import annotations

import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from gakd.errors import InputError, RunError

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN in the environment"


def check_push(repository: str) -> str | None:
    """InputError where a student could not be pushed: the name is none, there is no token, or one that may not write.

    Returns a warning where the hub cannot be asked now: it may be there when the run ends.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub takes NAME or OWNER/NAME, got {repository!r}: {_line(error)}") from error
    if constants.HF_HUB_OFFLINE:
        raise InputError("--push-to-hub, and HF_HUB_OFFLINE is set: unset it, or leave out --push-to-hub")
    if get_token() is None:
        raise InputError(f"--push-to-hub {repository} needs a token of the hub, and there is none: {_LOGIN}")
    try:
        user = HfApi().whoami()
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise InputError(f"--push-to-hub {repository}: the hub does not take this token; {_LOGIN}") from error
        return _unreached(repository, error)
    except Exception as error:  # whatever a network does
        return _unreached(repository, error)
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"--push-to-hub {repository}: this token may only read; {_LOGIN}, with one that may write")
    return None


def push(folder: Path, repository: str) -> str:
    """Upload a model's folder and return its address. A repository that there is not yet becomes a private one.

    RunError for whatever the hub or the network answers: the folder stays as it is, and the line has the command that
    pushes it by hand.
    """
    try:
        api = HfApi()
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="A student distilled by gakd")
    except Exception as error:
        by_hand = shlex.join(["hf", "upload", repository, str(folder), ".", "--private"])
        raise RunError(
            f"the student is not on the hub ({_line(error)}); it is whole in {folder}. By hand: {by_hand}"
        ) from error
    return str(made)


def _unreached(repository: str, error: Exception) -> str:
    return (
        f"--push-to-hub {repository}: the hub cannot be asked now ({_line(error)}). The run goes on, and tries again when "
        f"it ends"
    )


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
