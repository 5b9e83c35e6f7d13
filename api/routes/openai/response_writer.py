"""A response and its events, made of the tokens of its job.

The same tokens make the same events, so that a stream can be resumed after any of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from tokenizers import Tokenizer

from api.routes.openai import answers
from api.schemas.openai.errors import openai_error
from market.chat.answer import AnswerReader
from market.jobs.live_session import JobOutcome, TokenEntry
from market.jobs.structured_output.tool_call_parser import ContentDelta, Delta, ToolCallDelta
from market.jobs.tables import Job, JobStatus
from mesh.errors import MeshError

Event = dict[str, Any]

STATUSES = {JobStatus.PENDING: "queued", JobStatus.ACTIVE: "in_progress"}
"""Of jobs that have not ended."""


class ResponseWriter:
    """
    Args:
        job: Of the response.
        echo: What it repeats of its request.
        reader: Reads the job's answer.
        tokenizer: The model's.
    """

    def __init__(
        self, job: Job, echo: Mapping[str, Any], reader: AnswerReader, tokenizer: Tokenizer
    ) -> None:
        self._job = job
        self._echo = dict(echo)
        self._reader = reader
        self._tokenizer = tokenizer
        self._number = job.request_id.removeprefix("req_")
        self._output: list[dict[str, Any]] = []
        self._open = False
        """Whether the last item goes on."""
        self._sequence = 0
        self._logprobs: list[dict[str, Any]] = []
        """Of tokens that have shown nothing yet."""

    def begin(self) -> Iterator[Event]:
        """The events before the first token."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self.document("in_progress"))

    def token(self, token: TokenEntry) -> Iterator[Event]:
        """What a token shows."""
        if token.logprobs:
            logprobs = answers.chat_logprobs(self._tokenizer, [token])
            self._logprobs += logprobs["content"]
        yield from self._deltas(self._reader.feed(token.text))

    def end(self, outcome: JobOutcome) -> Iterator[Event]:
        """The events after the last token."""
        yield from self._deltas(self._reader.finish())
        if not self._output:
            yield from self._open_message()
        yield from self._close()
        response = self.ended(outcome)
        status = response["status"]
        kind = "completed" if status == "cancelled" else status
        yield self._event(f"response.{kind}", response=response)

    def fail(self, error: MeshError) -> Iterator[Event]:
        """The last event of a response that failed."""
        yield self._event("response.failed", response=self.failed(error))

    def ended(self, outcome: JobOutcome) -> dict[str, Any]:
        """The response, after all tokens."""
        reason = outcome["finish_reason"]
        if reason == "length":
            status, why = "incomplete", {"reason": "max_output_tokens"}
        else:
            status, why = "cancelled" if reason == "cancelled" else "completed", None
        return self.document(status) | {
            "incomplete_details": why,
            "completed_at": int(
                self._job.started_at.timestamp() + (outcome["latency_ms"] or 0) / 1000
            ),
            "usage": _usage(outcome),
            "system_fingerprint": answers.fingerprint([outcome]),
            "jobs": answers.job_facts([(self._job, outcome)]),
        }

    def failed(self, error: MeshError) -> dict[str, Any]:
        """The response of a job that failed."""
        told = openai_error(error)
        return self.document("failed") | {
            "error": {"code": told["code"], "message": told["message"]}
        }

    def document(self, status: str) -> dict[str, Any]:
        """The response, with its output so far."""
        return {
            "id": f"resp_{self._number}",
            "object": "response",
            "created_at": int(self._job.started_at.timestamp()),
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": deepcopy(self._output),
            "usage": None,
            **self._echo,
        }

    def _deltas(self, deltas: Iterable[Delta]) -> Iterator[Event]:
        for delta in deltas:
            if isinstance(delta, ContentDelta):
                yield from self._text(delta.text)
            else:
                yield from self._call(delta)

    def _text(self, text: str) -> Iterator[Event]:
        if not self._open or self._output[-1]["type"] != "message":
            yield from self._close()
            yield from self._open_message()
        logprobs, self._logprobs = self._logprobs, []
        [part] = self._output[-1]["content"]
        part["text"] += text
        part["logprobs"] += logprobs
        yield self._item_event("output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _call(self, delta: ToolCallDelta) -> Iterator[Event]:
        if delta.name is not None:
            yield from self._close()
            self._add(
                "fc",
                type="function_call",
                call_id=delta.id,
                name=delta.name,
                arguments="",
            )
            yield self._added()
        self._output[-1]["arguments"] += delta.arguments
        yield self._item_event("function_call_arguments.delta", delta=delta.arguments)

    def _open_message(self) -> Iterator[Event]:
        self._add("msg", type="message", role="assistant", content=[])
        yield self._added()
        part: dict[str, Any] = {
            "type": "output_text",
            "text": "",
            "annotations": [],
            "logprobs": [],
        }
        self._output[-1]["content"].append(part)
        yield self._item_event("content_part.added", content_index=0, part=part | {"logprobs": []})

    def _close(self) -> Iterator[Event]:
        """Complete the item that is open, if one is."""
        if not self._open:
            return
        self._open = False
        item = self._output[-1]
        item["status"] = "completed"
        if item["type"] == "message":
            [part] = item["content"]
            part["logprobs"] += self._logprobs
            self._logprobs = []
            yield self._item_event(
                "output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"]
            )
            yield self._item_event("content_part.done", content_index=0, part=part)
        else:
            yield self._item_event(
                "function_call_arguments.done", name=item["name"], arguments=item["arguments"]
            )
        yield self._event(
            "response.output_item.done", output_index=len(self._output) - 1, item=item
        )

    def _add(self, prefix: str, **fields: Any) -> None:
        item_id = f"{prefix}_{self._number}_{len(self._output)}"
        self._output.append({"id": item_id, "status": "in_progress", **fields})
        self._open = True

    def _added(self) -> Event:
        return self._event(
            "response.output_item.added",
            output_index=len(self._output) - 1,
            item=deepcopy(self._output[-1]),
        )

    def _item_event(self, kind: str, **fields: Any) -> Event:
        """An event of the last item."""
        return self._event(
            f"response.{kind}",
            item_id=self._output[-1]["id"],
            output_index=len(self._output) - 1,
            **fields,
        )

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event


def _usage(outcome: JobOutcome) -> dict[str, Any]:
    usage = answers.usage([outcome])
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
        "cost": usage["cost"],
        "cost_far_exact": usage["cost_far_exact"],
    }
