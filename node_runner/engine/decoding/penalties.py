"""What a request has taken from logits, or added to them, token by token.

The repetition penalty is that of transformers (Keskar et al. 2019), for tokens of the prompt and of
the answer; a request that names none has the checkpoint's own. Frequency and presence penalties are
OpenAI's, for tokens of the answer alone. Then biases are added. What is not asked for costs
nothing, what is asked for costs by the tokens that it changes, and no row changes another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mesh.wire import SamplingParams

_LARGEST = torch.finfo(torch.float32).max
_SMALLEST = torch.finfo(torch.float32).tiny

_FACTOR, _COUNT, _BIAS = range(3)
_UNCHANGED = torch.tensor([[1.0], [0.0], [0.0]])


@dataclass(frozen=True, slots=True)
class _Changes:
    """Tokens whose logits change, each once.

    ``places``: of each token, where it stands. ``token_ids``: ``[tokens]``, int64. ``values``:
    ``[3, tokens]``, float32: the repetition penalty of each, how often it was generated, its bias.
    Both are on the CPU.
    """

    places: dict[int, int]
    token_ids: torch.Tensor
    values: torch.Tensor

    def after(self, tokens: Sequence[int], *, repetition: float, generated: bool) -> "_Changes":
        """With further tokens of the text."""
        places, token_ids, values = self.places, self.token_ids, self.values.clone()
        new = [token for token in dict.fromkeys(tokens) if token not in places]
        if new:
            places = places | {token: len(places) + at for at, token in enumerate(new)}
            token_ids = torch.cat([token_ids, torch.tensor(new)])
            values = torch.cat([values, _UNCHANGED.expand(-1, len(new))], dim=1)
        changed = torch.tensor([places[token] for token in tokens])
        values[_FACTOR, changed] = repetition
        if generated:
            values[_COUNT].index_add_(0, changed, torch.ones(len(changed)))
        return _Changes(places, token_ids, values)


class Penalties:
    """Penalties and biases of one generation, and what they look up in its text. They are made of
    request and tokens alone, so a generation that continues elsewhere has equal ones.

    Args:
        params: The request's.
        prompt_length: Tokens of its prompt.
        repetition: The repetition penalty; 1 for none.
    """

    def __init__(self, params: SamplingParams, *, prompt_length: int, repetition: float) -> None:
        self._prompt_length = prompt_length
        # Such that float32 has it, also of a whole number.
        self._repetition = float(min(max(repetition, _SMALLEST), _LARGEST))
        self._frequency = params.frequency_penalty
        self._presence = params.presence_penalty
        self._indexed = 0
        token_ids = list(params.logit_bias)
        values = _UNCHANGED.repeat(1, len(token_ids))
        values[_BIAS] = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        places = {token: at for at, token in enumerate(token_ids)}
        self._changes = _Changes(places, torch.tensor(token_ids, dtype=torch.int64), values)

    def index(self, tokens: Sequence[int]) -> None:
        """Look at the text's new tokens. May be repeated, also after it raised."""
        prompt, changes = self._prompt_length, self._changes
        changes = self._after(changes, tokens[self._indexed : prompt], generated=False)
        changes = self._after(changes, tokens[max(self._indexed, prompt) :], generated=True)
        self._changes, self._indexed = changes, len(tokens)

    def changes(self, drafts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids ``[tokens]`` whose logits change after the indexed text and draft tokens, and
        ``[3, tokens]``, float32, on the CPU: a factor, what is taken, what is added."""
        changes = self._after(self._changes, drafts, generated=True)
        factor, count, bias = changes.values
        taken = self._frequency * count + self._presence * (count > 0)
        return changes.token_ids, torch.stack([factor, taken, bias])

    def _after(self, changes: _Changes, tokens: Sequence[int], *, generated: bool) -> _Changes:
        counted = generated and (self._frequency != 0 or self._presence != 0)
        if not tokens or not (counted or self._repetition != 1):
            return changes
        return changes.after(tokens, repetition=self._repetition, generated=generated)


def penalties_of(
    params: SamplingParams, *, prompt_length: int, repetition: float
) -> Penalties | None:
    """Penalties and biases of a request; none if it has none.

    Args:
        params: The request's.
        prompt_length: Tokens of its prompt.
        repetition: The checkpoint's repetition penalty, for a request that names none.
    """
    if params.repetition_penalty is not None:
        repetition = params.repetition_penalty
    asked = repetition != 1, params.frequency_penalty, params.presence_penalty, params.logit_bias
    if not any(asked):
        return None
    return Penalties(params, prompt_length=prompt_length, repetition=repetition)


class PenalizedRow(NamedTuple):
    """A row of logits: after ``tokens`` and ``drafts``, draft tokens behind them."""

    penalties: Penalties | None
    tokens: Sequence[int]
    drafts: Sequence[int]


def penalize(logits: torch.Tensor, rows: Sequence[PenalizedRow]) -> torch.Tensor:
    """Logits as each row's penalties and biases change them: a new tensor, or the given one if no
    row has any. Infinite ones stay, and others stay finite. The penalties are brought up to the
    rows' texts.

    Args:
        logits: ``[rows, vocab]``, float32.
        rows: In their order.
    """
    asking = [(at, row, row.penalties) for at, row in enumerate(rows) if row.penalties is not None]
    if not asking:
        return logits
    for _, row, penalties in asking:
        penalties.index(row.tokens)
    changes = [penalties.changes(row.drafts) for _, row, penalties in asking]
    token_ids = torch.cat([ids for ids, _ in changes])
    lengths = torch.tensor([len(ids) for ids, _ in changes])
    at = torch.tensor([at for at, _, _ in asking]).repeat_interleave(lengths)
    places = _moved(torch.stack([at, token_ids]), logits.device).unbind()
    values = _moved(torch.cat([each for _, each in changes], dim=1), logits.device)
    factor, taken, added = values.unbind()
    given = logits[places]
    changed = torch.where(given < 0, given * factor, given / factor).clamp(-_LARGEST, _LARGEST)
    changed = (changed - taken + added).where(given.isfinite(), given)
    return logits.index_put(places, changed)  # a row has each token once


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To a GPU from pinned memory, which does not wait for kernels that still run there."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
