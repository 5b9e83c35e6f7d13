"""Penalties and biases of requests: as transformers and OpenAI define them, row by row."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.generation_config import GenerationConfig
from mesh.wire import SamplingParams
from node_runner.engine.decoding.logits_processor import Continuation, LogitsProcessor
from node_runner.engine.decoding.sampler import sample
from tests.support.engine.pipeline import GREEDY
from tests.support.engine.sampling import check_draws, penalties, warpers

VOCAB = 12
TOKENS = st.integers(0, VOCAB - 1)
PENALTIES = st.floats(-2, 2)
BIASES = st.dictionaries(TOKENS, st.floats(-100, 100, width=32), max_size=VOCAB)
ASKED = st.builds(
    lambda **asked: replace(GREEDY, **asked),
    repetition_penalty=st.one_of(st.none(), st.floats(0.1, 9)),
    frequency_penalty=st.one_of(st.just(0.0), PENALTIES),
    presence_penalty=st.one_of(st.just(0.0), PENALTIES),
    logit_bias=BIASES,
)
TEXTS = st.lists(
    st.tuples(
        ASKED,
        st.lists(TOKENS, min_size=1, max_size=6),
        st.lists(TOKENS, max_size=9),
        st.lists(TOKENS, max_size=4),
    ),
    min_size=1,
    max_size=4,
)
CHANGES = {
    "repetition penalty": {"repetition_penalty": 1.8},
    "reward of repetition": {"repetition_penalty": 0.7},
    "frequency penalty": {"frequency_penalty": 0.6},
    "presence penalty": {"presence_penalty": 1.5},
    "biases": {"logit_bias": {0: 1.5, 3: -1.0, 4: -100.0}},
    "all": {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.4,
        "presence_penalty": -0.5,
        "logit_bias": {0: 0.5, 3: -1.0, 7: -100.0},
    },
}


def processor(settings: GenerationConfig | None = None) -> LogitsProcessor:
    return LogitsProcessor(settings or GenerationConfig(), device=torch.device("cpu"))


def continuation(
    of: LogitsProcessor,
    params: SamplingParams,
    prompt: Sequence[int],
    generated: Sequence[int],
    drafts: Sequence[int] = (),
) -> Continuation:
    """With a history of its own."""
    history = of.history(params, len(prompt))
    return Continuation([*prompt, *generated], drafts, len(prompt), 99, history)


@given(TEXTS, st.integers(0, 2**32))
def test_logits_equal_those_of_transformers_and_of_openais_formula(
    texts: list[tuple[SamplingParams, list[int], list[int], list[int]]], seed: int
) -> None:
    """Of many requests at once, with draft tokens behind their texts."""
    ours = processor()
    rows = sum(1 + len(drafts) for *_, drafts in texts)
    logits = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 9
    given_logits = logits.clone()
    scores = iter(ours.process(logits, [continuation(ours, *text) for text in texts]))
    assert torch.equal(logits, given_logits)
    for params, prompt, generated, drafts in texts:
        theirs = penalties(params, len(prompt))
        for count in range(1 + len(drafts)):
            ids = torch.tensor([prompt + generated + drafts[:count]])
            row, given_logits = given_logits[:1], given_logits[1:]
            torch.testing.assert_close(next(scores), theirs(ids, row)[0])


@given(TEXTS)
def test_a_row_has_the_bits_that_it_has_alone(
    texts: list[tuple[SamplingParams, list[int], list[int], list[int]]],
) -> None:
    ours = processor()
    logits = torch.randn(sum(1 + len(drafts) for *_, drafts in texts), VOCAB) * 9
    together = ours.process(logits, [continuation(ours, *text) for text in texts])
    at = 0
    for params, prompt, generated, drafts in texts:
        for count in range(1 + len(drafts)):
            alone = continuation(ours, params, prompt, generated + drafts[:count])
            row = slice(at, at + 1)
            assert torch.equal(ours.process(logits[row], [alone]), together[row])
            at += 1


@given(ASKED, st.lists(TOKENS, min_size=1, max_size=40), st.data())
def test_penalties_that_grow_with_the_text_are_those_made_anew(
    params: SamplingParams, tokens: list[int], data: st.DataObject
) -> None:
    """As on a node on which the generation continues."""
    ours = processor()
    prompt = data.draw(st.integers(1, len(tokens)))
    logits = torch.linspace(-2, 2, VOCAB)[None]
    grown = ours.history(params, prompt)
    for end in sorted(data.draw(st.sets(st.integers(prompt, len(tokens))))):
        one, again, other = (
            ours.process(logits, [Continuation(tokens[:end], [], prompt, 99, history)])
            for history in (grown, grown, ours.history(params, prompt))
        )
        assert torch.equal(one, other)
        assert torch.equal(again, other)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_draws_are_from_what_transformers_leaves(changes: dict[str, object]) -> None:
    prompt, generated = [1, 2, 2], [3, 4, 4, 1]
    params = replace(SamplingParams(1.1, 0.97, 3, [], top_k=11, min_p=0.003), **changes)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(5))
    ids = torch.tensor([prompt + generated])
    left = warpers(params)(ids, penalties(params, len(prompt))(ids, logits[None]))[0]
    ours = processor()
    draws = 40_000
    texts = [continuation(ours, params, prompt, generated)] * draws
    check_draws(
        logits, params, left, draws=draws, process=lambda logits: ours.process(logits, texts)
    )


@pytest.mark.parametrize("asked", [None, 1.0, 1.9])
def test_a_request_replaces_the_checkpoints_repetition_penalty(asked: float | None) -> None:
    ours = processor(GenerationConfig(repetition_penalty=1.4))
    params = replace(GREEDY, repetition_penalty=asked)
    logits = torch.randn(1, VOCAB)
    scores = ours.process(logits, [continuation(ours, params, [1, 2], [3])])
    used = replace(params, repetition_penalty=1.4 if asked is None else asked)
    theirs = penalties(used, 2)(torch.tensor([[1, 2, 3]]), logits)
    torch.testing.assert_close(scores, theirs)


def test_a_bias_bans_and_forces_but_not_what_the_checkpoint_bans() -> None:
    ours = processor(GenerationConfig(suppress_tokens=frozenset({5})))
    logits = torch.tensor([[0.0] * 10 + [9.0, 8.0]])

    def chosen(bias: dict[int, float]) -> int:
        text = continuation(ours, replace(GREEDY, logit_bias=bias), [1], [])
        scores = ours.process(logits, [text])
        return int(scores.argmax())

    assert chosen({}) == 10
    assert chosen({10: -100}) == 11
    assert chosen({3: 100}) == 3
    assert chosen({5: 100, 10: -100}) == 11


def test_greedy_tokens_are_penalized_too() -> None:
    ours = processor()
    params = replace(GREEDY, frequency_penalty=2.0)
    logits = torch.linspace(0, 1, VOCAB)[None]
    tokens: list[int] = []
    for position in range(VOCAB):
        text = continuation(ours, params, [VOCAB - 1], tokens)
        [token] = sample(
            logits, [params], [position], process=lambda given, t=text: ours.process(given, [t])
        )
        tokens.append(token)
    assert tokens == list(range(VOCAB - 1, -1, -1))


def test_logits_that_nobody_wants_changed_are_not_touched() -> None:
    ours = processor()
    logits = torch.randn(2, VOCAB)
    assert ours.history(replace(GREEDY, repetition_penalty=1.0), 1) is None
    texts = [continuation(ours, GREEDY, [1], [2]), continuation(ours, GREEDY, [1], [2])]
    assert ours.process(logits, texts) is logits


LARGEST = torch.finfo(torch.float32).max


@given(
    st.lists(
        st.one_of(
            st.floats(-LARGEST, LARGEST, width=32),
            st.sampled_from([0.0, -0.0, LARGEST, -LARGEST, float("-inf")]),
        ),
        min_size=VOCAB,
        max_size=VOCAB,
    ).filter(lambda row: max(row) > float("-inf")),
    st.one_of(st.none(), st.floats(5e-324, 1.7e308), st.integers(1, 2**64 - 1)),
    st.one_of(PENALTIES, st.integers(-2, 2)),
    BIASES,
    st.lists(TOKENS, max_size=20),
    st.sampled_from([0, 0.0, 5e-324, 1.0, 1.7e308]),
)
def test_all_numbers_that_a_request_may_have_give_a_token_of_the_models(
    row: list[float],
    repetition: float | None,
    penalty: float,
    bias: dict[int, float],
    generated: list[int],
    temperature: float,
) -> None:
    params = SamplingParams(
        temperature,
        1.0,
        1,
        [],
        repetition_penalty=repetition,
        frequency_penalty=penalty,
        presence_penalty=penalty,
        logit_bias=bias,
    )
    ours = processor()
    logits = torch.tensor([row])
    text = continuation(ours, params, [0], generated)
    scores = ours.process(logits, [text])
    assert scores.isfinite().tolist() == logits.isfinite().tolist()
    [token] = sample(logits, [params], [9], process=lambda given: ours.process(given, [text]))
    assert row[token] > float("-inf")
