"""Text as it comes: whole characters, and never a piece of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from node_runner.engine.decoding.detokenizer import Detokenizer
from tests.conftest import DEMO_MODEL

TOKENIZER = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


def pieces(text: str, stop: list[str]) -> tuple[list[str], bool]:
    """The pieces of a text's tokens, up to a stop or all."""
    stream = Detokenizer(TOKENIZER, [], stop)
    shown = []
    for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
        piece, stopped = stream.push(token)
        shown.append(piece)
        if stopped:
            return shown, True
    shown.append(stream.flush())
    return shown, False


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_pieces_add_up_to_the_text(text: str) -> None:
    whole = TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False).ids)
    shown, stopped = pieces(text, [])
    assert ("".join(shown), stopped) == (whole, False)


def test_a_character_of_several_tokens_comes_whole() -> None:
    shown, _ = pieces("a 😀 b", [])
    assert "😀" in shown
    assert all("\ufffd" not in piece for piece in shown)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["twofold"], None),
        ("aaab", ["aab"], "a"),
        ("an end.", ["."], "an end"),
        ("starts here", ["start"], ""),
    ],
)
def test_the_text_ends_before_the_first_stop_string(
    text: str, stop: list[str], expected: str | None
) -> None:
    shown, stopped = pieces(text, stop)
    assert stopped is (expected is not None)
    assert "".join(shown) == (text if expected is None else expected)


@given(
    text=st.text(alphabet="ab ", min_size=1, max_size=40),
    stop=st.text(alphabet="ab ", min_size=1, max_size=4),
)
def test_no_reader_ever_sees_a_piece_of_a_stop_string(text: str, stop: str) -> None:
    shown, stopped = pieces(text, [stop])
    assert stopped is (stop in text)
    assert "".join(shown) == text.partition(stop)[0]
