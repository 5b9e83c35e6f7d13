"""The text of API keys: drawn at random, checked by its checksum, and found by scanners."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.identity.api_key_text import (
    BASE62,
    PATTERN,
    PREFIX,
    RANDOM_LENGTH,
    hash_of,
    hint_of,
    is_well_formed,
    new_key,
)

DOCUMENT = Path(__file__).parents[4] / "docs" / "api.md"


def test_keys_differ_in_all_of_their_characters() -> None:
    keys = [new_key() for _ in range(500)]
    bodies = [key.removeprefix(PREFIX)[:RANDOM_LENGTH] for key in keys]
    assert len(set(keys)) == 500
    # The first character of 43 has the four bits that 42 of them leave.
    for place in range(1, RANDOM_LENGTH):
        assert len({body[place] for body in bodies}) > len(BASE62) // 2, place
    assert {character for body in bodies for character in body} == set(BASE62)


@given(place=st.integers(0, RANDOM_LENGTH + 5), character=st.sampled_from(BASE62))
def test_one_wrong_character_is_noticed(place: int, character: str) -> None:
    key = new_key()
    at = len(PREFIX) + place
    changed = key[:at] + character + key[at + 1 :]
    assert is_well_formed(changed) == (changed == key)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: "",
        lambda key: key[:-1],
        lambda key: f"{key}0",
        lambda key: f"{key}\n",
        lambda key: key.swapcase(),
        lambda key: key.replace(PREFIX, "sk-"),
        lambda key: PREFIX,
        lambda key: key[:-1] + "ä",
        lambda key: key[:-1] + "\x00",
    ],
)
def test_what_is_not_whole_is_no_key(change: object) -> None:
    assert callable(change)
    key = new_key()
    assert is_well_formed(key)
    assert not is_well_formed(change(key))


def test_scanners_find_keys_in_a_text_by_the_pattern_that_the_documents_name() -> None:
    keys = [new_key(), new_key()]
    leaked = f'OPENAI_API_KEY="{keys[0]}"\n# {keys[1]}, and far{keys[0]}0'
    assert re.findall(PATTERN, leaked) == keys
    assert PATTERN in DOCUMENT.read_text()


def test_the_stored_hash_does_not_reveal_the_key() -> None:
    key = new_key()
    assert len(hash_of(key)) == 32
    assert hash_of(key) != hash_of(new_key())
    shown = hint_of(key).removeprefix(PREFIX).split("...")
    assert [len(part) for part in shown] == [4, 4]
