"""Damage of a cache of responses: named with its line, or without any effect."""

from __future__ import annotations

import json
import random

import pytest

from gakd.errors import InputError
from gakd.samplers.response_cache import Response, ResponseCache


@pytest.fixture
def path(tmp_path):
    with ResponseCache(tmp_path / "c") as cache:
        for index in range(8):
            text = f'Text {index}: "é"\n a\u2028b {"word " * index}'
            cache.append(f"{index:064x}", Response(text, "stop", index, 2 * index))
    return tmp_path / "c"


def found_in(path) -> list[Response]:
    with ResponseCache(path) as cache:
        return list(cache.found.values())


def test_every_flipped_bit_is_named_or_harmless(path):
    named: list[str] = []
    whole, expected, draw, last = path.read_bytes(), found_in(path), random.Random(0), path.stat().st_size - 1
    line_breaks = [place for place, byte in enumerate(whole) if byte == 10]
    for place in [draw.randrange(len(whole)) for _ in range(60)] + line_breaks:
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = found_in(path)
            except InputError as error:
                named.append(str(error))
                continue
            # Without its line break the last line is one that a kill cut short: it is asked for again.
            assert found == (expected[:-1] if place == last else expected), (place, bit)
    assert len(named) > 400
    assert all(f"{path}:" in line for line in named)


def test_lines_without_a_checksum_are_read(path):
    expected = found_in(path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(record.pop("check")) == 16 for record in records)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert found_in(path) == expected
