"""A chat in the terminal with the model that the stack serves, over OpenAI's API."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount
from rich.console import Console
from rich.markup import escape

from stack.demo import DEMO_TIMEOUT, DEPOSITED, GIVEN, DemoError, login
from stack.development_stack import DevelopmentStack

ANSWER_TIMEOUT = 120.0
"""Seconds without a piece of the answer."""

NEW = "/new"


class ChatRefused(Exception):
    """The API answers with an error; its sentence is the message."""


@dataclass
class Chat:
    """A conversation with a model. The client's requests are authenticated."""

    http: httpx.Client
    model: str
    messages: list[dict[str, str]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """Of each request beside its messages, as OpenAI names them."""
    usage: dict[str, Any] = field(default_factory=dict)
    """Of the newest answer."""

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece. It is part of the conversation once it is complete; a
        question without an answer is not.

        Raises:
            ChatRefused: the question is refused, or the answer could not be finished.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        pieces = []
        for chunk in self._chunks(asked):
            self.usage = chunk.get("usage") or self.usage
            for choice in chunk["choices"]:
                if piece := choice["delta"].get("content"):
                    pieces.append(piece)
                    yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def _chunks(self, messages: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
        body = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        request = self.http.stream(
            "POST", "/v1/chat/completions", json=body, timeout=ANSWER_TIMEOUT
        )
        with request as answer:
            if answer.is_error:
                answer.read()
                raise ChatRefused(_sentence(answer))
            for data in _events(answer.iter_lines()):
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise ChatRefused(chunk["error"]["message"])
                yield chunk
        raise ChatRefused("The stream ended before the answer did.")


def run(
    stack: DevelopmentStack, console: Console, questions: Iterable[str], **options: Any
) -> None:
    """Answer question after question.

    Args:
        questions: :data:`NEW` begins another conversation.
        options: Of each request, as OpenAI names them.

    Raises:
        DemoError: the deposit that pays for the answers is not credited.
    """
    with httpx.Client(base_url=stack.plan.api_url, timeout=60) as http:
        with console.status("A wallet, with a deposit to pay for the answers"):
            pay_in(stack, http)
        console.print(
            f"\n[bold]{stack.plan.model_id}[/] on {stack.plan.nodes} nodes. {NEW} begins another "
            "conversation, Ctrl-D ends.\n"
        )
        chat = Chat(http, stack.plan.model_id, options=options)
        for question in questions:
            if question == NEW:
                chat.messages = []
            elif question.strip():
                _answer(console, chat, question)


def pay_in(stack: DevelopmentStack, http: httpx.Client) -> None:
    """Log the client in with a new wallet whose deposit counts.

    Raises:
        DemoError: the deposit is not credited.
    """
    user: LocalAccount = Account.create()
    stack.chain.give(stack.deployment, user.address, GIVEN)
    stack.chain.deposit(stack.deployment, user, DEPOSITED)
    login(http, user)
    give_up = time.monotonic() + DEMO_TIMEOUT
    while True:
        money = http.get("/api/billing/balance").raise_for_status().json()
        if money["available_far"] > 0 and money["cap"]["left_far"] > 0:
            return
        if time.monotonic() > give_up:
            raise DemoError("The deposit was not credited.")
        time.sleep(0.2)


def typed(console: Console) -> Iterator[str]:
    """Lines that somebody types, until Ctrl-D."""
    while True:
        try:
            yield console.input("[bold green]you[/] ")
        except EOFError:
            return


def _answer(console: Console, chat: Chat, question: str) -> None:
    began = time.monotonic()
    try:
        for piece in chat.ask(question):
            console.print(piece, end="", markup=False, soft_wrap=True)
        console.print(f"\n[dim]{_facts(chat.usage, time.monotonic() - began)}[/]\n")
    except ChatRefused as refused:
        console.print(f"\n[red]far-mesh:[/] {escape(str(refused))}\n", soft_wrap=True)


def _facts(usage: dict[str, Any], seconds: float) -> str:
    facts = f"{usage.get('completion_tokens', 0)} tokens in {seconds:.1f} s"
    return facts if "cost" not in usage else f"{facts}, {usage['cost']:g} FAR"


def _events(lines: Iterable[str]) -> Iterator[str]:
    """The data of server-sent events. OpenAI's have one line each."""
    for line in lines:
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def _sentence(answer: httpx.Response) -> str:
    try:
        sentence: str = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"The API answers {answer.status_code} without saying why."
    return sentence
