"""The hub's client as a stub with the signatures of the real one: what tests of a push share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from huggingface_hub import HfApi

from gakd.models import hub


class Repository(SimpleNamespace):
    """What the client makes of a new repository: with its owner."""

    def __init__(self, name: str) -> None:
        super().__init__(repo_id=name if "/" in name else f"me/{name}")

    def __str__(self) -> str:
        return f"HUB/{self.repo_id}"


def stub_hub(patch: pytest.MonkeyPatch) -> Any:
    """A hub that is online, knows the token, and has room."""
    stub = create_autospec(HfApi, instance=True)
    stub.whoami.return_value = {"name": "me", "auth": {"accessToken": {"role": "write"}}}
    stub.create_repo.side_effect = lambda repo_id, **_: Repository(repo_id)
    patch.setattr(hub, "HfApi", lambda: stub)
    patch.setattr(hub, "get_token", lambda: "a token")
    patch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    return stub
