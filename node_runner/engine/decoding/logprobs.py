"""Log-probabilities of sampled tokens, for readers who ask for them.

They are those of the model: of its logits before penalties, biases, grammar and temperature, as
OpenAI's and vLLM's by default (`raw_logprobs`). So they do not depend on how a token was sampled.
"""

from collections.abc import Sequence

import torch

from mesh.wire import SamplingParams
from mesh.wire.limits import MAX_TOP_LOGPROBS
from mesh.wire.logprobs import Logprob, pack_logprobs
from node_runner.engine.decoding.sampler import NOT_FINITE

IMPOSSIBLE = -9999.0
"""The least that is reported, as OpenAI does: JSON has no minus infinity."""


def packed_logprobs(
    logits: torch.Tensor, chosen: Sequence[int], params: Sequence[SamplingParams]
) -> list[bytes]:
    """For each row, the natural log-probability of the token that was chosen, then those of the
    likeliest, in falling order, the chosen one among them if it is; empty if none is asked for.

    Args:
        logits: The model's, ``[rows, vocab]``, float32.
        chosen: Token ids, by row; :data:`NOT_FINITE` where there is none.
        params: How each row is sampled: ``logprobs`` are the likeliest to report.
    """
    packed = [b""] * len(chosen)
    rows = [
        row
        for row, own in enumerate(params)
        if own.logprobs is not None and chosen[row] != NOT_FINITE
    ]
    if not rows:
        return packed
    logprobs = logits[rows].log_softmax(dim=-1).clamp(min=IMPOSSIBLE)
    # As many for all: which of equally likely tokens come first depends on how many are wanted.
    most = min(MAX_TOP_LOGPROBS, logits.shape[-1])
    ids = torch.tensor([[chosen[row]] for row in rows], device=logits.device)
    ids = torch.cat([ids, logprobs.topk(most, dim=-1).indices], dim=-1)
    values = logprobs.gather(1, ids)
    for row, row_ids, row_values in zip(rows, ids.tolist(), values.tolist(), strict=True):
        entries = list(map(Logprob, row_ids, row_values))
        packed[row] = pack_logprobs(entries[: 1 + (params[row].logprobs or 0)])
    return packed
