"""Pieces of text add up to what decoding all tokens at once gives, whatever the decoder."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from transformers.convert_slow_tokenizer import bytes_to_unicode

from node_runner.engine.decoding.text_decoder import (
    MAX_HELD_BYTES,
    MAX_WINDOW,
    REPLACEMENT,
    TextDecoder,
)
from tests.support.engine.tokenizers import FIRST_BYTE, FIRST_PIECE, TOKENIZERS, byte_fallback_bpe
from tests.support.some_slow import some_slow

NAMES = sorted(TOKENIZERS)
QUICK = ("byte level", "byte fallback")
LLAMA = byte_fallback_bpe()
LETTER = FIRST_PIECE + 1
BYTE_LEVEL = TOKENIZERS["byte level"]
BYTE_CHARACTERS = bytes_to_unicode()


def ids(text: bytes) -> list[int]:
    """Byte tokens."""
    return [FIRST_BYTE + byte for byte in text]


def decoded(tokenizer: Tokenizer, token_ids: list[int], prompt: list[int] | None = None) -> str:
    decoder = TextDecoder(tokenizer, prompt or [])
    return "".join([*map(decoder.push, token_ids), decoder.flush()])


def has_long_run(token_ids: list[int]) -> bool:
    """Whether so many byte tokens come in a row that some are shown before the last one."""
    run = 0
    for token in token_ids:
        if FIRST_BYTE <= token < FIRST_PIECE:
            run += 1
        elif FIRST_PIECE <= token < LLAMA.get_vocab_size():
            run = 0
        if run >= MAX_HELD_BYTES:
            return True
    return False


def whole(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    text: str = tokenizer.decode(token_ids, skip_special_tokens=True)
    return text


BYTE_RUNS = st.one_of(st.binary(max_size=9), st.text("你é😀a\ufffd", max_size=9).map(str.encode))
TOKENS = st.lists(
    st.one_of(st.integers(0, FIRST_PIECE + 25).map(lambda token: [token]), BYTE_RUNS.map(ids)),
    max_size=12,
).map(lambda parts: [token for part in parts for token in part])


@pytest.mark.parametrize("name", NAMES)
@given(TOKENS)
@example(ids("你".encode()) + ids(b"\xff") + [LETTER])
@example([*ids("你é".encode()), 1, *ids(b"\xff\xff"), LETTER])
@example([FIRST_PIECE] * 3 + ids(b"  ") + [LETTER])
@example(ids(b"\xe4\xbd"))
def test_pieces_add_up_to_the_text(name: str, token_ids: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    assume("byte fallback" not in name or not has_long_run(token_ids))
    assert decoded(tokenizer, token_ids) == whole(tokenizer, token_ids)


@pytest.mark.parametrize("name", some_slow(NAMES, quick=QUICK))
@given(prompt=TOKENS, token_ids=TOKENS)
def test_after_a_prompt_too(name: str, prompt: list[int], token_ids: list[int]) -> None:
    """Where its text is a beginning of the whole."""
    tokenizer = TOKENIZERS[name]
    assume("byte fallback" not in name or not has_long_run(prompt + token_ids))
    before, both = whole(tokenizer, prompt), whole(tokenizer, prompt + token_ids)
    text = decoded(tokenizer, token_ids, prompt)
    if both.startswith(before) and not before.endswith(REPLACEMENT):
        assert before + text == both


@pytest.mark.parametrize("name", NAMES)
@given(st.lists(st.integers(-(2**70), 2**70), max_size=20))
def test_ids_that_no_token_has_are_no_text(name: str, token_ids: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    known = [token for token in token_ids if 0 <= token < tokenizer.get_vocab_size()]
    assert decoded(tokenizer, token_ids) == whole(tokenizer, known)


@given(st.integers(1, 4 * MAX_WINDOW), st.sampled_from(["byte level", "byte fallback"]))
def test_endless_bytes_that_are_no_text(count: int, name: str) -> None:
    """Are shown as they come, and cost a constant time each."""
    tokenizer = TOKENIZERS[name]
    broken = tokenizer.token_to_id("ÿ") if name == "byte level" else FIRST_BYTE + 255
    decoder = TextDecoder(tokenizer, [])
    pieces = [decoder.push(broken) for _ in range(count)]
    assert len("".join(pieces)) >= count - 1
    assert len(decoder._window) <= MAX_WINDOW
    assert "".join([*pieces, decoder.flush()]) == REPLACEMENT * count


@given(st.text("你é😀", min_size=MAX_HELD_BYTES, max_size=200))
def test_a_long_run_of_bytes_is_shown_by_characters(text: str) -> None:
    decoder = TextDecoder(LLAMA, [])
    pieces = [decoder.push(token) for token in ids(text.encode())]
    held = next(number for number, piece in enumerate(pieces) if piece)
    assert held < MAX_HELD_BYTES + 4
    assert all(len(piece) <= 1 for piece in pieces[held + 1 :])
    assert len(decoder._window) <= MAX_WINDOW
    assert "".join(pieces) == text


def test_a_long_run_that_turns_out_to_be_no_text() -> None:
    """What was shown stays; every byte after it is one replacement character."""
    decoder = TextDecoder(LLAMA, [])
    pieces = [decoder.push(token) for token in [*ids("你".encode() * 20 + b"\xff\xfe"), LETTER]]
    assert "".join(pieces) == "你" * 20 + "��a"


BYTES_OF = {
    "byte fallback": ids,
    "byte fallback without strip": ids,
    "byte fallback unigram": ids,
    "byte level": lambda text: [BYTE_LEVEL.token_to_id(BYTE_CHARACTERS[byte]) for byte in text],
}
"""Token ids of bytes, one each, by tokenizer."""


@pytest.mark.parametrize("name", BYTES_OF)
@given(
    text=st.text("你é😀a\ufffd ", min_size=1, max_size=6).map(str.encode),
    cut=st.floats(0, 1),
    end=st.sampled_from([b"", b"a", b"\xff", b"\xe4", b"\xe4\xbd", b"\xf0\x9f"]),
)
def test_text_begins_after_the_prompt_whatever_byte_that_ends_with(
    name: str, text: bytes, cut: float, end: bytes
) -> None:
    tokenizer, token_ids = TOKENIZERS[name], BYTES_OF[name]
    size = max(1, round(cut * len(text)))
    prompt, rest = token_ids(text[:size]), token_ids(text[size:] + end)
    complete = token_ids(text[:size].decode(errors="ignore").encode())
    both = whole(tokenizer, prompt + rest)
    for before in (whole(tokenizer, prompt), whole(tokenizer, complete)):
        if both.startswith(before):
            assert decoded(tokenizer, rest, prompt) == both.removeprefix(before)
            return
    # A run of byte tokens that turns out to be no text: its beginning was the prompt's.
    assert set(decoded(tokenizer, rest, prompt)) <= {REPLACEMENT, *both}


def test_an_incomplete_character_at_the_end_of_the_prompt_is_completed() -> None:
    for name in ("byte fallback", "byte level"):
        tokenizer = TOKENIZERS[name]
        if name == "byte level":
            first, *rest = tokenizer.encode("你").ids
            letter = tokenizer.encode("a").ids
        else:
            (first, *rest), letter = ids("你".encode()), [LETTER]
        prompt = [*letter, first]
        assert decoded(tokenizer, rest + letter, prompt) == "你a"
        assert decoded(tokenizer, letter, prompt) == "a"


def test_a_token_named_like_a_byte_is_text_without_byte_fallback() -> None:
    tokenizer = byte_fallback_bpe()
    tokenizer.decoder = decoders.Fuse()
    assert decoded(tokenizer, ids(b"\xffa")) == "<0xFF><0x61>"
