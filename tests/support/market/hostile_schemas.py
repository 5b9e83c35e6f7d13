"""Schemas that cost a stranger little and a compiler much, each followed in this process.

`python -m tests.support.market.hostile_schemas` prints a line for each: refused by the gateway,
refused at the edge, or followed for a while.
"""

import random
import resource
from collections.abc import Callable, Mapping
from typing import Any

from llguidance import LLTokenizer
from tokenizers import Tokenizer

from market.errors import InvalidRequest
from market.jobs.structured_output.response_format import response_grammar
from mesh.grammar import GrammarRefused, compile_grammar
from tests.support.engine.tokenizers import byte_level

CPU_SECONDS = 120
"""For all of them, a twentieth of which they take."""

MEMORY = 3 * 2**30
"""Address space in bytes."""

FOLLOWED = 40
"""Tokens."""

Schema = dict[str, Any]


def _chain(length: int, link: Callable[[Schema], Schema]) -> Schema:
    """Definitions, each of which has a reference to the next."""
    definitions: Schema = {
        f"n{number}": link({"$ref": f"#/$defs/n{number + 1}"}) for number in range(length)
    }
    definitions[f"n{length}"] = {"type": "string"}
    return {"$ref": "#/$defs/n0", "$defs": definitions}


def _nested(depth: int) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _object(link: Schema) -> Schema:
    return {"type": "object", "properties": {"a": link}, "required": ["a"]}


def _pattern(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


HOSTILE: Mapping[str, Schema] = {
    "nested": _nested(60),
    "a chain of references": _chain(3000, lambda link: link),
    "a chain of objects": _chain(1200, _object),
    "a chain of unions": _chain(900, lambda link: {"anyOf": [link, {"type": "null"}]}),
    "a chain of intersections": _chain(900, lambda link: {"allOf": [link, {"type": "string"}]}),
    "a chain as deep as it may be": _chain(160, _object),
    "doubled references": _chain(60, lambda link: {"prefixItems": [link, link]}),
    "doubled unions": _chain(30, lambda link: {"anyOf": [link, link]}),
    "itself": {"$ref": "#"},
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "recursion": {"items": {"$ref": "#"}, "minItems": 1},
    "many values": {"enum": [f"value {number}" for number in range(6000)]},
    "long values": {"enum": ["x" * 60_000 + "a", "x" * 60_000 + "b"]},
    "many items": {"type": "array", "minItems": 10**6, "items": {"type": "string"}},
    "optional items in items": {
        "type": "array",
        "maxItems": 1000,
        "items": {"type": "array", "maxItems": 1000, "items": {"type": "array", "maxItems": 1000}},
    },
    "a long text": {"type": "string", "minLength": 10**9},
    "a limited text": {"type": "string", "maxLength": 10**6},
    "many properties": {"type": "object", "minProperties": 10**6},
    "many optional properties": {"properties": {f"p{number}": {} for number in range(2000)}},
    "as many optional properties as there may be": {
        "type": "object",
        "properties": {f"p{number}": {"type": "string"} for number in range(400)},
    },
    "many first items": {"type": "array", "prefixItems": [{"type": "string"}] * 5000},
    "multiples": {"type": "integer", "multipleOf": 99_999_989},
    "many multiples": {"anyOf": [{"type": "integer", "multipleOf": 9973}] * 500},
    "common multiples": {
        "allOf": [{"type": "integer", "multipleOf": factor} for factor in (2903, 2909, 2917)]
    },
    "decimals": {"type": "number", "multipleOf": 1.23e-7},
    "great numbers": {"type": "number", "minimum": -1.7e308, "maximum": 1.7e308},
    "intersections of unions": {
        "allOf": [
            {
                "anyOf": [
                    {"properties": {f"k{at}{of}": {}}, "required": [f"k{at}{of}"]} for of in "abc"
                ]
            }
            for at in range(12)
        ]
    },
    "intersections of patterns": {
        "allOf": [_pattern(f".*{letter}.{{{at + 3}}}.*") for at, letter in enumerate("abcdefghij")]
    },
    "names by overlapping patterns": {
        "patternProperties": {f"^p{number}.*$": {"type": "string"} for number in range(200)}
    },
    "repeated repetitions": _pattern("^((a{0,100}){0,100}){0,100}$"),
    "nested repetitions": _pattern("^(a+)+$"),
    "what came before": _pattern(".*a.{300}"),
    "nested groups": _pattern("(" * 400 + "a" + ")" * 400),
    "a long pattern": _pattern("(a|b)?" * 10_000),
    "many patterns": {"anyOf": [_pattern("(a|b)?" * 160) for _ in range(100)]},
    "letters": _pattern("^[\\p{L}\\p{N}]{1,1000}$"),
    "a look ahead": _pattern("(?=a)(?!b)"),
    "options of the library": {"x-guidance": {"whitespace_pattern": "(a|b)?" * 10_000}},
}


def follow(schema: Schema, tokenizer: LLTokenizer) -> str:
    """What becomes of a schema."""
    named = {"name": "hostile", "strict": True, "schema": schema}
    try:
        grammar = response_grammar({"type": "json_schema", "json_schema": named})
    except InvalidRequest:
        return "refused by the gateway"
    drawn = random.Random(0)
    try:
        matcher = compile_grammar(tokenizer, grammar)
    except GrammarRefused:
        return "refused at the edge"
    for _ in range(FOLLOWED):
        allowed = matcher.compute_bitmask()
        tokens = [
            token for token in range(tokenizer.vocab_size) if allowed[token // 8] >> token % 8 & 1
        ]
        if matcher.is_stopped() or not matcher.consume_token(drawn.choice(tokens)):
            break
    return "refused at the edge" if matcher.is_error() else "followed"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    own: Tokenizer = byte_level()
    tokenizer = LLTokenizer(own.to_str(), eos_token=[2])
    for name, schema in HOSTILE.items():
        print(f"{name}: {follow(schema, tokenizer)}", flush=True)


if __name__ == "__main__":
    main()
