"""Prompts that make a model write bytes which are no text, or that readers would get back whole."""

import itertools
from pathlib import Path

import pytest

from mesh.wire import SamplingParams, Token
from mesh.wire.limits import MAX_TOKEN_TEXT
from node_runner.engine.decoding.detokenizer import Detokenizer
from tests.support.engine.models import save_chain
from tests.support.engine.pipeline import Pipeline
from tests.support.engine.tokenizers import FIRST_BYTE, FIRST_PIECE, byte_fallback_bpe

LLAMA = byte_fallback_bpe()
A, B, C, J = (FIRST_PIECE + letter for letter in (1, 2, 3, 10))
REPLACEMENT = FIRST_PIECE + 16
"""The token of the character that stands for what is no text."""

BROKEN = [*"你".encode(), 0xFF]
"""A whole character, which the byte after it takes back."""

ATTACK = [*(FIRST_BYTE + byte for byte in BROKEN), A, B]
"""What the model writes after J: bytes that are no text, then text."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with Llama 2's tokenizer that writes the attack after J, and one c after another."""
    successors = {J: ATTACK[0], **dict(itertools.pairwise(ATTACK)), C: C}
    return save_chain(tmp_path_factory.mktemp("chain"), LLAMA, successors)


@pytest.fixture
def pipeline(chain: Path, tmp_path: Path) -> Pipeline:
    return Pipeline.cut(chain, [0, 1, 2], tmp_path)


def test_bytes_that_are_no_text_end_no_node(pipeline: Pipeline) -> None:
    pipeline.open("bystander", [C], max_tokens=12)
    pipeline.open("attack", [J], max_tokens=len(ATTACK))
    pipeline.run()
    assert pipeline.tokens("attack") == ATTACK
    assert pipeline.text("attack") == LLAMA.decode(ATTACK)
    assert pipeline.tokens("bystander") == [C] * 12
    assert pipeline.refused == []


@pytest.mark.parametrize("count", range(1, len(ATTACK)))
def test_nor_another_node_that_goes_on_after_them(pipeline: Pipeline, count: int) -> None:
    """At whichever token its predecessor has ended."""
    so_far = ATTACK[:count]
    pipeline.written["attack"] = [
        Token("attack", 1, index, token, "") for index, token in enumerate(so_far)
    ]
    pipeline.open("attack", [J], max_tokens=len(ATTACK), epoch=2, generated=so_far)
    pipeline.run()
    assert pipeline.tokens("attack") == ATTACK


@pytest.mark.parametrize("end", [[FIRST_BYTE + 0xE4], [FIRST_BYTE + 0xFF], [A, REPLACEMENT]])
def test_a_prompt_that_ends_within_a_character_is_not_sent_to_readers(
    pipeline: Pipeline, end: list[int]
) -> None:
    """With the first token: as thousands of characters, it would break the relay's rule, and the
    edge would be blamed."""
    pipeline.open("attack", [J] * 300 + end, max_tokens=9)
    pipeline.run()
    assert len(pipeline.text("attack")) < 30


@pytest.mark.parametrize("length", [10, MAX_TOKEN_TEXT - 1, 3 * MAX_TOKEN_TEXT])
def test_no_token_has_more_text_than_the_relay_lets_pass(length: int) -> None:
    """However long a text an added token has; the rest comes with later tokens."""
    tokenizer = byte_fallback_bpe()
    tokenizer.add_tokens(["a" * length])
    detokenizer = Detokenizer(tokenizer, [], [])
    long = tokenizer.token_to_id("a" * length)
    pieces = [detokenizer.push(token)[0] for token in (long, A, A, A)]
    pieces.append(detokenizer.flush())
    assert max(map(len, pieces)) <= MAX_TOKEN_TEXT
    assert "".join(pieces) == "a" * (length + 3)


def test_a_stop_text_is_found_in_bytes_that_were_held_back(pipeline: Pipeline) -> None:
    """Also if they are the last ones."""
    sampling = SamplingParams(temperature=0.0, top_p=1.0, seed=0, stop=["你"])
    pipeline.open("attack", [J], max_tokens=3, sampling=sampling)
    pipeline.run()
    assert pipeline.text("attack") == ""
