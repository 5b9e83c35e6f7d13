"""Text as it comes: whole characters, and never a piece of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from node_runner.engine.decoding.detokenizer import Detokenizer
from tests.conftest import DEMO_MODEL
from tests.support.engine.tokenizers import SPECIAL, TOKENIZERS

TOKENIZER = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


BYTE_LEVEL, LLAMA = TOKENIZERS["byte level"], TOKENIZERS["byte fallback"]


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


def tokens(text: bytes) -> list[int]:
    """A token for each byte."""
    characters = bytes_to_unicode()
    return [BYTE_LEVEL.token_to_id(characters[byte]) for byte in text]


def shown(prompt: bytes, ids: list[int], stop: list[str]) -> tuple[str, bool]:
    stream = Detokenizer(BYTE_LEVEL, tokens(prompt), stop)
    text = ""
    for token in ids:
        piece, stopped = stream.push(token)
        text += piece
        if stopped:
            return text + stream.flush(), True
    return text + stream.flush(), False


def test_a_stop_string_in_the_prompt_ends_nothing() -> None:
    """Also not where the prompt ends with half a character."""
    rest = tokens("😀 b".encode()[2:])
    assert shown("stop 😀".encode()[:-2], rest, ["stop", "top"]) == ("😀 b", False)


@pytest.mark.parametrize("end", [b"\xe4\xbd", "\ufffd".encode()])
def test_nothing_is_lost_at_the_end(end: bytes) -> None:
    assert shown(b"a", tokens(b"b" + end), ["stop"]) == ("b\ufffd", False)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        (["a", "</s>", "b"], ["</s>"], "a"),
        (["a", "</s>", "b"], ["x", "</s>"], "a"),
        (["a\n", "</s>"], ["\n</s>"], "a"),
        (["a\n", "b", "</s>"], ["\n</s>"], None),
        (["a", "<s>", "b", "c"], ["<s>b"], "a"),
        (["a", "<s>", "c", "b"], ["<s>b"], None),
        (["a", "<s>", "</s>", "b"], ["<s></s>"], "a"),
        (["a", "<s>", "b"], ["ab"], ""),
        (["a", "<s>", "b", "</s>"], ["ab", "<s></s>"], ""),
        (["a", "<s>", "c", "</s>"], ["ab", "<s></s>"], None),
        (["a"], ["</s>"], None),
    ],
)
def test_stop_strings_may_name_special_tokens(
    text: list[str], stop: list[str], expected: str | None
) -> None:
    ids = [token for part in text for token in BYTE_LEVEL.encode(part).ids]
    visible = "".join(part for part in text if part not in SPECIAL)
    wanted = (visible, False) if expected is None else (expected, True)
    assert shown(b"q", ids, stop) == wanted


def test_half_a_character_before_a_special_token_is_shown() -> None:
    [end] = BYTE_LEVEL.encode("</s>").ids
    assert shown(b"q", [*tokens(b"a\xe4"), end], ["</s>"]) == ("a\ufffd", True)


def test_nothing_is_shown_after_a_stop_string() -> None:
    assert shown(b"q", tokens(b"a.\xe4"), ["."]) == ("a", True)
    stream = Detokenizer(LLAMA, [], ["ab"])
    [both] = [LLAMA.token_to_id("ab")]
    assert stream.push(both) == ("", True)
    assert stream.flush() == ""
