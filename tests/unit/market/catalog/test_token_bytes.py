"""What is said of a tokenizer holds for every text, and nothing is said where there is no limit."""

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece

from market.catalog.token_bytes import most_bytes_a_token
from tests.conftest import DEMO_MODEL

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """The two bytes of a composed letter, and two of them, are tokens."""
    e_acute = "Ã©"
    tokens = [*ALPHABET, e_acute, 2 * e_acute]
    merges = [("Ã", "©"), (e_acute, e_acute)]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def composing() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("e\u0301tude", normalized=True)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    tokens = [*BYTES, "▁", "a", "▁a", "▁▁"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [("▁", "a"), ("▁", "▁")]
    tokenizer = Tokenizer(BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<end of text>"])
    return tokenizer


def demo() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


LIMITED = {
    make.__name__: (make(), most_bytes_a_token(make()))
    for make in (byte_level, composing, byte_fallback, demo)
}
WORST_COMPOSED = "\u1fbe\u0308\u0301"
PIECES = st.sampled_from(
    ["é", "e\u0301", WORST_COMPOSED, " ", "a", "▁", "<end of text>", "<|endoftext|>", "étude"]
)


@pytest.mark.parametrize("name", LIMITED)
@given(text=st.lists(PIECES | st.text(max_size=5), max_size=30).map("".join))
def test_no_token_stands_for_more(name: str, text: str) -> None:
    tokenizer, most = LIMITED[name]
    assert most is not None
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(text.encode()) <= len(tokens) * most


def test_the_limit_is_that_of_the_longest_token() -> None:
    assert most_bytes_a_token(byte_level()) == 4
    assert most_bytes_a_token(demo()) == 15
    assert most_bytes_a_token(byte_fallback()) == len("▁<end▁of▁text>".encode())


def test_composition_leaves_no_less_than_a_quarter() -> None:
    composed = unicodedata.normalize("NFC", WORST_COMPOSED)
    assert len(composed.encode()) * 4 >= len(WORST_COMPOSED.encode()) > len(composed.encode()) * 3


def truncating(tokenizer: Tokenizer) -> None:
    tokenizer.enable_truncation(4)


def stripping(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Strip()


def shortening(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace("aaaaaaaa", "a")


def squeezing(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace(Regex(" +"), " ")


def splitting_at_blanks(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]
    )


def removing(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]
    )


def not_by_bytes(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Digits()


def swallowing_blanks(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken("<end>", rstrip=True)])


def lacking_bytes(tokenizer: Tokenizer) -> None:
    tokenizer.model = BPE({"a": 0}, [])


def whole_unknown_words(tokenizer: Tokenizer) -> None:
    tokenizer.model = WordPiece({"[UNK]": 0}, unk_token="[UNK]")


@pytest.mark.parametrize(
    "change",
    [
        truncating,
        stripping,
        shortening,
        squeezing,
        splitting_at_blanks,
        removing,
        not_by_bytes,
        swallowing_blanks,
        lacking_bytes,
        whole_unknown_words,
    ],
)
def test_nothing_is_said_where_a_token_may_stand_for_any_length(
    change: Callable[[Tokenizer], None],
) -> None:
    tokenizer = byte_level()
    change(tokenizer)
    assert most_bytes_a_token(tokenizer) is None
