"""What a grammar does to the choice of a token: it bans what may not come, and nothing else."""

from collections import Counter

import pytest
import torch

from mesh.grammar import GrammarRefused
from mesh.wire import SamplingParams
from node_runner.engine.decoding.grammar import GrammarMatcher, GrammarRows, Grammars
from node_runner.engine.decoding.sampler import sample
from tests.support.engine.tokenizers import (
    byte_fallback_bpe,
    byte_fallback_unigram,
    byte_level,
    word_piece,
)

END = 2
WIDTH = 320
"""Logits, of which the last have no token."""

BANNED = float("-inf")


def grammars() -> Grammars:
    return Grammars(byte_level(), vocab_size=WIDTH, end_tokens=[END], device=torch.device("cpu"))


def matcher(of: Grammars, grammar: str, generated: str = "") -> GrammarMatcher:
    return of.compile(grammar, byte_level().encode(generated).ids).result()


def ids(text: str) -> list[int]:
    return byte_level().encode(text).ids


def allowed(of: Grammars, text: GrammarMatcher) -> set[int]:
    flat = torch.zeros(1, WIDTH)
    [row] = of.restrict(flat, flat, [GrammarRows(text, 0, [])]).tolist()
    return {token for token, score in enumerate(row) if score != BANNED}


def test_only_what_may_come_is_left() -> None:
    of = grammars()
    assert allowed(of, matcher(of, 'start: "ab" | "ac" | "d"')) == {*ids("a"), *ids("d")}
    assert allowed(of, matcher(of, 'start: "ab" | "ac" | "d"', "a")) == {*ids("b"), *ids("c")}


def test_a_text_may_end_just_where_its_grammar_lets_it() -> None:
    of = grammars()
    number = matcher(of, "start: /[0-9]+/")
    digits = set(ids("0123456789"))
    assert allowed(of, number) == digits
    number.advance(ids("7"))
    assert allowed(of, number) == {*digits, END}
    assert not number.complete


def test_a_text_is_complete_where_nothing_may_follow() -> None:
    of = grammars()
    text = matcher(of, 'start: "ab"', "a")
    assert not text.complete
    text.advance(ids("b"))
    assert text.complete


def test_no_token_comes_that_has_no_text() -> None:
    of = grammars()
    of_any_text = allowed(of, matcher(of, "start: /(?s:.*)/"))
    assert max(of_any_text) < byte_level().get_vocab_size() < WIDTH


def test_rows_of_other_texts_stay_as_they_are() -> None:
    of = grammars()
    torch.manual_seed(0)
    scores, logits = torch.randn(5, WIDTH), torch.randn(5, WIDTH)
    text = GrammarRows(matcher(of, 'start: "ab"'), 1, ids("a"))
    restricted = of.restrict(scores.clone(), logits, [text])
    assert torch.equal(restricted[[0, 3, 4]], scores[[0, 3, 4]])
    for row, letter in ((1, "a"), (2, "b")):
        [token] = ids(letter)
        assert restricted[row, token] == scores[row, token]
        assert (restricted[row] == BANNED).sum() == WIDTH - 1


def test_a_draft_leaves_the_matcher_as_it_was() -> None:
    of = grammars()
    text = matcher(of, "start: /[a-c]*d/")
    before = allowed(of, text)
    flat = torch.zeros(4, WIDTH)
    of.restrict(flat, flat, [GrammarRows(text, 0, ids("abd"))])
    of.restrict(flat, flat, [GrammarRows(text, 0, [*ids("ab"), END])])
    assert allowed(of, text) == before


def test_what_all_else_bans_comes_where_the_grammar_wants_it() -> None:
    of = grammars()
    logits = torch.zeros(1, WIDTH)
    logits[0, ids("b")] = 3.0
    scores = torch.full((1, WIDTH), BANNED)
    restricted = of.restrict(scores, logits, [GrammarRows(matcher(of, "start: /[ab]/"), 0, [])])
    assert restricted[0, ids("b")].item() == 3.0
    assert restricted[0, ids("a")].item() == 0.0
    assert (restricted == BANNED).sum() == WIDTH - 2


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_what_is_allowed_is_as_likely_as_before(temperature: float) -> None:
    """Chi-squared test of 20,000 draws by the renormalised softmax of what is allowed."""
    of = grammars()
    text = matcher(of, "start: /[a-h]/")
    torch.manual_seed(1)
    draws = 20_000
    logits = torch.randn(1, WIDTH)
    tokens = ids("abcdefgh")
    expected = torch.softmax(logits[0, tokens].double() / temperature, -1) * draws
    params = [
        SamplingParams(temperature=temperature, top_p=1.0, seed=seed, stop=[])
        for seed in range(draws)
    ]
    restricted = of.restrict(logits, logits, [GrammarRows(text, 0, [])]).expand(draws, -1)
    drawn = Counter(
        token
        for at in range(0, draws, 2000)
        for token in sample(restricted[at : at + 2000], params[at : at + 2000], [9] * 2000)
    )
    assert drawn.keys() <= set(tokens)
    observed = torch.tensor([drawn[token] for token in tokens], dtype=torch.float64)
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    assert statistic < 24.3  # the 99.9 % quantile at 7 degrees of freedom


@pytest.mark.parametrize(
    ("grammar", "generated"),
    [
        ("start: (", ""),
        ("start: none", ""),
        ('start: %json {"type": "x"}', ""),
        ('start: "a"', "b"),
    ],
)
def test_what_cannot_be_followed_is_refused(grammar: str, generated: str) -> None:
    with pytest.raises(GrammarRefused):
        matcher(grammars(), grammar, generated)


@pytest.mark.parametrize("tokenizer", [byte_level, byte_fallback_bpe, byte_fallback_unigram])
def test_vocabularies_of_all_kinds_write_the_text(tokenizer: object) -> None:
    assert callable(tokenizer)
    own = tokenizer()
    of = Grammars(own, vocab_size=WIDTH, end_tokens=[END], device=torch.device("cpu"))
    text = of.compile('start: "{\\"ab\\": [1]}"', []).result()
    written: list[int] = []
    while not text.complete:
        token = min(allowed(of, text))
        written.append(token)
        text.advance([token])
    assert own.decode(written) == '{"ab": [1]}'


def test_a_vocabulary_that_has_no_bytes_is_refused() -> None:
    of = Grammars(word_piece(), vocab_size=WIDTH, end_tokens=[END], device=torch.device("cpu"))
    with pytest.raises(GrammarRefused):
        of.compile('start: "a"', []).result()
