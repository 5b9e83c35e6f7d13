"""The terminal's side of a chat: OpenAI's streaming format, and a conversation that grows."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from stack.chat import Chat, ChatRefused

Answering = Callable[[dict[str, Any]], httpx.Response]


def chat(answering: Answering, **options: Any) -> Chat:
    """A chat with an API that answers by a function of the request's body."""
    transport = httpx.MockTransport(lambda request: answering(json.loads(request.content)))
    http = httpx.Client(base_url="http://far.test", transport=transport)
    return Chat(http, "far/model", options=options)


def stream(*data: dict[str, Any] | str) -> httpx.Response:
    """Server-sent events, with the comments and blank lines that a server may send."""
    events = [each if isinstance(each, str) else json.dumps(each) for each in data]
    text = ": ping\r\n\r\n" + "".join(f"data: {event}\r\n\r\n" for event in events)
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


def piece(content: str | None, **others: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}], **others}


USAGE = {"completion_tokens": 2, "cost": 0.5}


def answer(*pieces: str) -> httpx.Response:
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    return stream(
        opening, *map(piece, pieces), piece(None), {"choices": [], "usage": USAGE}, "[DONE]"
    )


def test_an_answer_comes_piece_by_piece_and_joins_the_conversation() -> None:
    asked: list[dict[str, Any]] = []

    def answering(body: dict[str, Any]) -> httpx.Response:
        asked.append(body)
        return answer("Good", " “day”\n", "[DONE]")

    talk = chat(answering, max_tokens=5)
    assert list(talk.ask("Hello")) == ["Good", " “day”\n", "[DONE]"]
    assert talk.usage == USAGE
    list(talk.ask("Again"))
    assert asked[0] == {
        "model": "far/model",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
    }
    assert asked[1]["messages"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good “day”\n[DONE]"},
        {"role": "user", "content": "Again"},
    ]


@pytest.mark.parametrize(
    ("refusing", "sentence"),
    [
        (httpx.Response(400, json={"error": {"message": "No template."}}), "No template."),
        (httpx.Response(502, text="<html>"), "answers 502"),
        (httpx.Response(500, json=["odd"]), "answers 500"),
        (stream(piece("Go"), {"error": {"message": "The nodes left."}}, "[DONE]"), "nodes left"),
        (stream(piece("Go")), "ended before"),
    ],
    ids=["refused", "no JSON", "other JSON", "failed", "cut"],
)
def test_what_goes_wrong_is_told_and_leaves_the_conversation_as_it_was(
    refusing: httpx.Response, sentence: str
) -> None:
    answers = iter([answer("Yes"), refusing])
    talk = chat(lambda _: next(answers))
    list(talk.ask("Hello"))
    before = list(talk.messages)
    with pytest.raises(ChatRefused, match=sentence):
        list(talk.ask("And now?"))
    assert talk.messages == before
