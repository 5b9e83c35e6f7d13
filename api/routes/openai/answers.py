"""What OpenAI's answers have in common: usage, cost, log-probabilities, and how a job ended."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from tokenizers import Tokenizer

from api.routes.openai.following import EndedJob
from api.schemas.base import as_float
from market.jobs.live_session import JobOutcome, TokenEntry
from market.jobs.tables import Job
from market.money import format_exact
from mesh.wire.logprobs import Logprob, unpack_logprobs

LEAST_LOGPROB = -9999.0
"""In place of what no number of JSON stands for, as OpenAI has it."""

FINISH_REASONS = {"stop": "stop", "length": "length", "cancelled": "stop"}
"""Ours, and OpenAI's. A cancelled generation is as long as its user wanted it."""


def created_at(jobs: Sequence[Job]) -> int:
    """When the request was accepted, Unix time."""
    return int(jobs[0].started_at.timestamp())


def finish_reason(outcome: JobOutcome) -> str:
    return FINISH_REASONS.get(outcome["finish_reason"] or "", "stop")


def fingerprint(outcomes: Iterable[JobOutcome]) -> str | None:
    """How the nodes computed: OpenAI's name for what has to be equal for equal seeds to give equal
    answers. None if that is not known."""
    found = {
        f"{outcome['quantization']}.{_invariance(outcome)}"
        for outcome in outcomes
        if outcome["quantization"] is not None
    }
    return f"fp_{'+'.join(sorted(found))}" if found else None


def _invariance(outcome: JobOutcome) -> str:
    return "batch_invariant" if outcome["batch_invariant"] else "batch_variant"


def usage(outcomes: Sequence[JobOutcome]) -> dict[str, Any]:
    """What the jobs of a request took, all together: a prompt counts for each answer to it. Beside
    OpenAI's fields stands ``cost``, as OpenRouter has it: in FAR, with the exact amount as text."""
    prompt = sum(each["prompt_tokens"] for each in outcomes)
    completion = sum(each["total_tokens"] for each in outcomes)
    cost = sum((Decimal(each["cost_far"]) for each in outcomes), Decimal(0))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(each["cached_prompt_tokens"] for each in outcomes),
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": sum(each["accepted_draft_tokens"] for each in outcomes),
            "rejected_prediction_tokens": sum(each["rejected_draft_tokens"] for each in outcomes),
        },
        "cost": as_float(cost),
        "cost_far_exact": format_exact(cost),
    }


def job_facts(ended: Iterable[tuple[Job, JobOutcome]]) -> list[dict[str, Any]]:
    """What only a marketplace can tell of each answer: which job it was, who served it, what it
    cost, and where its receipt is."""
    return [
        {
            "request_id": job.request_id,
            "cost_far_exact": outcome["cost_far"],
            "latency_ms": outcome["latency_ms"],
            "time_to_first_token_ms": outcome["time_to_first_token_ms"],
            "nodes_used": outcome["nodes_used"],
            "receipt_url": f"/api/inference/jobs/{job.request_id}/receipt",
        }
        for job, outcome in ended
    ]


def outcomes_of(ended: Sequence[EndedJob]) -> list[JobOutcome]:
    return [each.outcome for each in ended]


def chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[TokenEntry]) -> dict[str, Any]:
    """Log-probabilities in the form of chat completions."""
    content = []
    for token in tokens:
        own, *likeliest = unpack_logprobs(token.logprobs) or [Logprob(token.token_id, 0.0)]
        content.append(
            _chat_logprob(tokenizer, own)
            | {"top_logprobs": [_chat_logprob(tokenizer, each) for each in likeliest]}
        )
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Iterable[TokenEntry], offset: int
) -> dict[str, Any]:
    """Log-probabilities in the form of text completions.

    Args:
        offset: Characters of the text before the first token.
    """
    names, values, tops, offsets = [], [], [], []
    for token in tokens:
        own, *likeliest = unpack_logprobs(token.logprobs) or [Logprob(token.token_id, 0.0)]
        names.append(_name(tokenizer, own))
        values.append(_finite(own))
        tops.append({_name(tokenizer, each): _finite(each) for each in likeliest})
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": names,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _chat_logprob(tokenizer: Tokenizer, entry: Logprob) -> dict[str, Any]:
    name = _name(tokenizer, entry)
    return {"token": name, "logprob": _finite(entry), "bytes": list(name.encode())}


def _name(tokenizer: Tokenizer, entry: Logprob) -> str:
    name: str = tokenizer.decode([entry.token_id], skip_special_tokens=False)
    return name


def _finite(entry: Logprob) -> float:
    return max(entry.logprob, LEAST_LOGPROB)
