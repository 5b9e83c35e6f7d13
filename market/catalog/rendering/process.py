"""The process that renders chat templates: a program of its own, which imports nothing of ours.

It reads a job a line, as JSON: ``template``, and ``variables``, which are null where the template
is only to be compiled. It answers each by a line: ``text``, or ``refused`` with the reason. A
template that takes more time or memory than it may ends the process.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_BYTES = 512 * 2**20
"""Address space of the process, of which the interpreter takes 30 MB. macOS knows no such limit."""

CPU_SECONDS = 2
"""Of the processor, for one text: a thousand times what one takes. The kernel counts whole ones."""

MAX_TEXT_CHARS = 2**20
"""Characters of a rendered text; a prompt may have fewer."""


class GenerationTag(Extension):
    """The block ``{% generation %}``, which marks what the model wrote, for those who train it."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class PublicNamespace(Namespace):
    """A ``namespace()`` without names that Python itself looks up."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *others = args
        attributes = dict(*others, **kwargs)
        for name in attributes:
            _check_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def main() -> None:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin.buffer:
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, resource.RLIM_INFINITY))
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


def _answer(job: Mapping[str, Any]) -> dict[str, str]:
    try:
        template = _compiled(job["template"])
        return {"text": "" if job["variables"] is None else _rendered(template, job["variables"])}
    except MemoryError:
        raise
    except Exception as error:  # a template's expressions raise whatever Python does
        return {"refused": str(error) or type(error).__name__}


def _rendered(template: Template, variables: Mapping[str, Any]) -> str:
    pieces, size = [], 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > MAX_TEXT_CHARS:
            raise TemplateError(f"The text has more than {MAX_TEXT_CHARS} characters.")
        pieces.append(piece)
    return "".join(pieces)


@lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    """A template in the environment that transformers compiles chat templates in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _now,
        "namespace": PublicNamespace,
    }
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it: jinja2's own filter escapes what HTML would."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _check_public(name: str) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"A namespace may not have the attribute {name!r}.")


if __name__ == "__main__":
    main()
