"""Log-probabilities are the model's, and no row's depend on what others ask for."""

from dataclasses import replace

import torch

from mesh.wire.logprobs import is_packed, unpack_logprobs
from node_runner.engine.decoding.logprobs import IMPOSSIBLE, packed_logprobs
from node_runner.engine.decoding.sampler import NOT_FINITE
from tests.support.engine.pipeline import GREEDY


def test_the_chosen_token_comes_first_and_then_the_likeliest() -> None:
    logits = torch.randn(3, 40)
    params = [replace(GREEDY, logprobs=count) for count in (5, 0, 20)]
    packed = packed_logprobs(logits, [7, 8, 9], params)
    assert all(map(is_packed, packed))
    for row, (own, token) in enumerate(zip(packed, [7, 8, 9], strict=True)):
        expected = logits[row].log_softmax(dim=-1)
        first, *likeliest = unpack_logprobs(own)
        assert first.token_id == token
        assert first.logprob == expected[token]
        top = expected.topk(params[row].logprobs or 0)
        assert [entry.token_id for entry in likeliest] == top.indices.tolist()
        assert [entry.logprob for entry in likeliest] == top.values.tolist()


def test_who_does_not_ask_gets_none() -> None:
    logits = torch.randn(2, 40)
    params = [GREEDY, replace(GREEDY, logprobs=1)]
    assert packed_logprobs(logits, [1, NOT_FINITE], params) == [b"", b""]


def test_what_one_row_asks_for_changes_no_other() -> None:
    """Also where tokens are equally likely."""
    logits = torch.randint(4, (6, 50)).float()
    params = [replace(GREEDY, logprobs=count) for count in (1, 20, 3, 0, 7, 2)]
    chosen = list(range(6))
    together = packed_logprobs(logits, chosen, params)
    for row in range(6):
        own = slice(row, row + 1)
        assert packed_logprobs(logits[own], chosen[own], params[own]) == together[own]


def test_no_more_than_the_vocabulary_has_and_none_is_infinite() -> None:
    logits = torch.tensor([[0.0, float("-inf"), -3e38]])
    [packed] = packed_logprobs(logits, [1], [replace(GREEDY, logprobs=20)])
    first, *likeliest = unpack_logprobs(packed)
    assert first == (1, IMPOSSIBLE)
    assert {entry.token_id for entry in likeliest} == {0, 1, 2}
    assert [entry.logprob for entry in likeliest] == [0.0, IMPOSSIBLE, IMPOSSIBLE]
