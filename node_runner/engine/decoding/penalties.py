"""What a request has taken from logits, or added to them, token by token.

The repetition penalty is that of transformers (Keskar et al. 2019), for tokens of the prompt and of
the answer; a request that names none has the checkpoint's own. Frequency and presence penalties are
OpenAI's, for tokens of the answer alone. Then biases are added. What a request does not ask for
costs nothing; what one row asks for changes no other row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mesh.wire import SamplingParams
from node_runner.engine.device.tensors import on_device

_LARGEST = torch.finfo(torch.float32).max
_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(slots=True, eq=False)
class Penalties:
    """Of one generation, with what they look up in its first ``indexed`` tokens. They are made of
    request and tokens alone, so a generation that continues elsewhere has equal ones.

    ``seen``: whether each token stood in the text, ``[vocab]``; none if ``repetition`` is 1.
    ``counts``: how often each was generated, ``[vocab]``, int32; none without ``frequency`` and
    ``presence``. ``biases``: token ids, and what is added to the logits of each; none if there are
    none.
    """

    prompt_length: int
    repetition: float
    frequency: float
    presence: float
    seen: torch.Tensor | None
    counts: torch.Tensor | None
    biases: tuple[torch.Tensor, torch.Tensor] | None
    indexed: int = 0

    def index(self, tokens: Sequence[int]) -> None:
        """Look at the text's new tokens. May be repeated, also after it raised."""
        new = tokens[self.indexed :]
        if new and self.seen is not None:
            self.seen[on_device(list(new), self.seen.device)] = True
        generated = tokens[max(self.indexed, self.prompt_length) :]
        if generated and self.counts is not None:
            ids = on_device(list(generated), self.counts.device)
            once = torch.ones_like(ids, dtype=self.counts.dtype)
            self.counts.scatter_add_(0, ids, once)  # last: it would count twice if repeated
        self.indexed = len(tokens)


class PenalizedRow(NamedTuple):
    """A row of logits: after ``tokens`` and ``drafts``, draft tokens behind them."""

    penalties: Penalties | None
    tokens: Sequence[int]
    drafts: Sequence[int]


def penalties_of(
    params: SamplingParams,
    *,
    prompt_length: int,
    repetition: float,
    vocab_size: int,
    device: torch.device,
) -> Penalties | None:
    """Penalties and biases of a request; none if it has none.

    Args:
        params: The request's.
        prompt_length: Tokens of its prompt.
        repetition: The checkpoint's repetition penalty, for a request that names none.
        vocab_size: Width of the logits.
        device: Where logits are.
    """
    if params.repetition_penalty is not None:
        repetition = params.repetition_penalty
    repeated = repetition != 1
    counted = params.frequency_penalty != 0 or params.presence_penalty != 0
    bias = params.logit_bias
    if not (repeated or counted or bias):
        return None
    return Penalties(
        prompt_length=prompt_length,
        repetition=min(max(repetition, _SMALLEST), _LARGEST),  # such that float32 has it
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
        seen=torch.zeros(vocab_size, dtype=torch.bool, device=device) if repeated else None,
        counts=torch.zeros(vocab_size, dtype=torch.int32, device=device) if counted else None,
        biases=(
            (on_device(list(bias), device), _floats(list(bias.values()), device)) if bias else None
        ),
    )


def penalize(logits: torch.Tensor, rows: Sequence[PenalizedRow]) -> torch.Tensor:
    """Logits less what each row's penalties take, plus its biases: a new tensor, or the given one
    if no row has any. The penalties are brought up to the rows' texts.

    Args:
        logits: ``[rows, vocab]``, float32.
        rows: In their order.
    """
    asking = [(at, row, row.penalties) for at, row in enumerate(rows) if row.penalties is not None]
    if not asking:
        return logits
    scores = logits.clone()
    for _, row, penalties in asking:
        penalties.index(row.tokens)
    _penalize_repetition(scores, asking)
    _penalize_counts(scores, asking)
    _add_biases(scores, asking)
    return scores


_Asking = tuple[int, PenalizedRow, Penalties]
"""The place of a row, the row, and its penalties."""


def _penalize_repetition(scores: torch.Tensor, asking: Sequence[_Asking]) -> None:
    """Less for tokens that stood in the text. Infinite logits stay, and others stay finite."""
    own = [
        (at, row, penalties, seen)
        for at, row, penalties in asking
        if (seen := penalties.seen) is not None
    ]
    if not own:
        return
    seen = torch.stack([each for _, _, _, each in own])
    at, token = _drafted([row for _, row, _, _ in own], scores.device)
    seen[at, token] = True
    penalty = _floats([penalties.repetition for _, _, penalties, _ in own], scores.device)[:, None]
    places = on_device([at for at, _, _, _ in own], scores.device)
    given = scores[places]
    less = torch.where(given < 0, given * penalty, given / penalty).clamp(-_LARGEST, _LARGEST)
    scores[places] = less.where(seen & given.isfinite(), given)


def _penalize_counts(scores: torch.Tensor, asking: Sequence[_Asking]) -> None:
    """Less for tokens that were generated: for each time, and for once."""
    own = [
        (at, row, penalties, counts)
        for at, row, penalties in asking
        if (counts := penalties.counts) is not None
    ]
    if not own:
        return
    counts = torch.stack([each for _, _, _, each in own])
    at, token = _drafted([row for _, row, _, _ in own], scores.device)
    counts.index_put_((at, token), torch.ones_like(at, dtype=counts.dtype), accumulate=True)
    frequency = _floats([penalties.frequency for _, _, penalties, _ in own], scores.device)
    presence = _floats([penalties.presence for _, _, penalties, _ in own], scores.device)
    places = on_device([at for at, _, _, _ in own], scores.device)
    scores[places] -= frequency[:, None] * counts + presence[:, None] * (counts > 0)


def _add_biases(scores: torch.Tensor, asking: Sequence[_Asking]) -> None:
    own = [(at, *biases) for at, _, penalties in asking if (biases := penalties.biases) is not None]
    if not own:
        return
    ids = torch.cat([each for _, each, _ in own])
    values = torch.cat([each for _, _, each in own])
    lengths = on_device([len(each) for _, each, _ in own], scores.device)
    places = on_device([at for at, _, _ in own], scores.device)
    places = places.repeat_interleave(lengths, output_size=len(ids))
    scores[places, ids] += values  # a row has each id once


def _drafted(
    rows: Sequence[PenalizedRow], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and tokens of all draft tokens."""
    pairs = [[at, token] for at, row in enumerate(rows) for token in row.drafts]
    at, token = on_device(pairs, device).reshape(-1, 2).long().T
    return at, token


def _floats(values: Sequence[float], device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.float32, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)
