"""A push to the hub: refused before training where it cannot be, never at the cost of the run."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from gakd.errors import InputError, RunError
from gakd.models import hub
from tests.hub_stub import stub_hub


@pytest.fixture
def api(monkeypatch):
    return stub_hub(monkeypatch)


def answer(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("refused", response=httpx2.Response(status, request=httpx2.Request("GET", "http://hub")))


def test_a_push_that_can_be_is_asked_about_once(api):
    assert hub.check_push("me/student") is None
    assert hub.check_push("student") is None
    assert api.whoami.call_count == 2
    assert not api.create_repo.called


@pytest.mark.parametrize("name", ["", "a/b/c", "a--b", "has space", ".hidden", "x" * 97, "name.git"])
def test_what_is_no_name_is_refused_before_anybody_is_asked(name, api):
    with pytest.raises(InputError, match="--push-to-hub takes NAME or OWNER/NAME, got "):
        hub.check_push(name)
    assert not api.whoami.called


def test_no_token_one_that_only_reads_one_that_is_unknown_and_no_network(api, monkeypatch):
    api.whoami.return_value = {"auth": {"accessToken": {"role": "read"}}}
    with pytest.raises(InputError, match="this token may only read"):
        hub.check_push("me/x")
    api.whoami.side_effect = answer(401)
    with pytest.raises(InputError, match="the hub does not take this token; log in with `hf auth login`"):
        hub.check_push("me/x")
    for error in (answer(503), OSError("no route to host")):  # which may pass until the run ends
        api.whoami.side_effect = error
        line = hub.check_push("me/x")
        assert line is not None
        assert "cannot be asked now" in line
        assert "\n" not in line
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="needs a token of the hub, and there is none"):
        hub.check_push("me/x")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        hub.check_push("me/x")


def test_a_folder_goes_to_a_private_repository_under_its_owner(api, tmp_path):
    assert hub.push(tmp_path, "student") == "HUB/me/student"
    api.create_repo.assert_called_once_with("student", private=True, exist_ok=True)
    (call,) = api.upload_folder.call_args_list
    assert (call.kwargs["repo_id"], call.kwargs["folder_path"]) == ("me/student", tmp_path)


@pytest.mark.parametrize("place", ["create_repo", "upload_folder"])
@pytest.mark.parametrize(
    "error", [answer(403), OSError("network\nis down"), httpx2.ConnectError("no"), ValueError("odd")]
)
def test_a_push_that_fails_says_how_to_do_it_by_hand(place, error, api, tmp_path):
    getattr(api, place).side_effect = error
    with pytest.raises(RunError) as failed:
        hub.push(tmp_path / "my student", "me/x")
    line = str(failed.value)
    assert "\n" not in line
    assert line.endswith(f"By hand: hf upload me/x '{tmp_path / 'my student'}' . --private")
