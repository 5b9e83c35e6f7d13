"""Templates that would take the gateway's time, memory or secrets, and messages that would make a
harmless template do so, end in an error for one request."""

import os
from typing import Any

import pytest

from market.catalog.chat_template import ChatTemplate
from market.catalog.rendering.process import MAX_TEXT_CHARS
from market.errors import InvalidRequest
from tests.support.chat.conversations import assistant, user
from tests.support.chat.styles import TEMPLATES
from tests.support.some_slow import some_slow

DOUBLED = (
    "{% set ns = namespace(a={start}) %}{% for i in range(60) %}{% set ns.a = {step} %}{% endfor %}"
)

HOSTILE = {
    "a huge constant": "{{ 'x' * 10 ** 9 }}",
    "a huge product": "{{ 'x' * (messages|length * 10 ** 10) }}",
    "a huge power": "{{ (messages|length + 8) ** (10 ** 8) }}",
    "a huge range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "nested loops": "{% set r = range(10 ** 5) %}"
    "{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "a long text": "{% for i in range(10 ** 5) %}{{ 'x' * 1000 }}{% endfor %}",
    "a doubled text": DOUBLED.replace("{start}", "'x'").replace("{step}", "ns.a ~ ns.a"),
    "a doubled sum": DOUBLED.replace("{start}", "'x'").replace("{step}", "ns.a + ns.a"),
    "a doubled list": DOUBLED.replace("{start}", "[1]").replace("{step}", "ns.a + ns.a"),
    "shared lists": DOUBLED.replace("{start}", "[1]").replace("{step}", "[ns.a, ns.a]")
    + "{{ ns.a|tojson }}",
    "compared lists": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "padding": "{{ 'x'.ljust(10 ** 10) }}",
    "centring": "{{ 'x'|center(10 ** 10) }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "another format": "{{ '{:10000000000d}'.format(1) }}",
    "replacing": "{{ ('a' * 10 ** 5).replace('a', 'b' * 10 ** 5) }}",
    "joining": "{{ (range(10 ** 5)|list)|join('x' * 10 ** 5) }}",
    "words": "{{ lipsum(n=10 ** 8) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a recursive loop": "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "branching recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "deep JSON": "{% set ns = namespace(a=[]) %}{% for i in range(10 ** 5) %}"
    "{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a|tojson }}",
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a class by a filter": "{{ (''|attr('__class__')).mro() }}",
    "a class by a format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "globals": "{{ raise_exception.__globals__['sys'].exit() }}",
    "globals of a macro": "{{ cycler.__init__.__globals__.os.environ }}",
    "a namespace's class": "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "another of its attributes": "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns }}",
    "a file": "{% include '/etc/passwd' %}",
    "a change of the messages": "{{ messages.append(1) }}",
}

TAKES_SECONDS = {"shared lists", "compared lists", "words", "branching recursion"}
"""Those that take all of the processor's time that a template has; so does "nested loops"."""


@pytest.mark.parametrize("name", some_slow(HOSTILE, quick=HOSTILE.keys() - TAKES_SECONDS))
def test_a_hostile_template_ends_with_an_error(name: str) -> None:
    hostile = ChatTemplate({"default": HOSTILE[name]}, {})
    with pytest.raises(InvalidRequest) as refused:
        hostile.render([user("Hello")])
    assert refused.value.code == "messages_refused"


def test_a_template_that_fails_for_some_serves_the_others() -> None:
    template = ChatTemplate({"default": "{{ 'x' * messages[0].content|int }}"}, {})
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            template.render([user(10**10)])
        assert template.render([user(3)]) == "xxx"


def test_a_template_is_alone_with_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process has none of the settings, whatever gets out of the sandbox."""
    monkeypatch.setenv("FAR_DATABASE_URL", "postgresql://secret")
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, {})
    template.render([user("Hello")])
    environments = [
        environment
        for pid in _children()
        if b"rendering/process.py" in _read(pid, "cmdline")
        for environment in [_read(pid, "environ")]
    ]
    assert environments
    assert all(b"secret" not in environment for environment in environments)


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "qwen"])
@pytest.mark.parametrize(
    "messages",
    [
        [user("x" * (MAX_TEXT_CHARS + 1))],
        [user("<" * 1000), assistant(">" * 1000)] * 1000,
    ],
    ids=["long", "many"],
)
def test_hostile_messages_are_refused(name: str, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        styled(name).render(messages)
    assert refused.value.code == "messages_refused"
    assert len(refused.value.detail) < 500


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "qwen"])
@pytest.mark.parametrize(
    "message",
    [
        user({"a": ["b"] * 10}),
        user(7),
        user(True),
        user([[[[]]]]),
        assistant("a", tool_calls=7),
        {"role": ["user"], "content": {}},
        {"role": "user" * 10**5, "content": "b"},
        {"role": "tool", "content": {"__class__": "a"}},
        {"items": "a", "get": 1, "role": "user", "content": "\ud800"},
    ],
)
def test_odd_messages_are_refused_or_rendered(name: str, message: dict[str, Any]) -> None:
    """By what the template makes of them, and no other error comes of it."""
    try:
        text = styled(name).render([message])
    except InvalidRequest as refused:
        text = refused.detail
    assert 0 < len(text) < 10**6


def test_messages_nested_too_deep_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    template = ChatTemplate({"default": "{{ messages }}"}, {})
    with pytest.raises(InvalidRequest, match="nested deeper"):
        template.render([user(deep)])


def styled(name: str) -> ChatTemplate:
    text = (TEMPLATES / f"{name}.jinja").read_text()
    return ChatTemplate({"default": text}, {"bos_token": "<s>", "eos_token": "</s>"})


def _children() -> list[str]:
    return [
        pid
        for pid in os.listdir("/proc")
        if pid.isdigit()
        and _read(pid, "stat").rpartition(b")")[2].split()[1:2] == [b"%d" % os.getpid()]
    ]


def _read(pid: str, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as opened:
            return opened.read()
    except OSError:
        return b""
