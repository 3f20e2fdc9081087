"""The mistakes of docs/errors.md, each made, and what is said compared with the page."""

from __future__ import annotations

import re

import pytest

from tests.error_catalogue import HEAD, MISTAKES, PAGE, make_places, row, said


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_answered_in_the_line_that_the_page_shows(mistake, tmp_path, capsys):
    make_places(tmp_path)
    status, line = said(mistake, tmp_path)
    assert status == (1 if mistake.prepare in {each.prepare for each in MISTAKES[-3:]} else 2)
    assert row(mistake, line) in PAGE.read_text().splitlines(), "run python -m tests.error_catalogue"
    # Got, expected or what to do: two parts at least.
    assert re.search(r"[:;,.] \S", line)
    assert "Traceback" not in capsys.readouterr().err


def test_the_page_is_the_catalogue_and_nothing_else():
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    assert len(text.removeprefix(HEAD).splitlines()) == len(MISTAKES) >= 20
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)
