"""Prompts of many lengths for the demo model."""

from tokenizers import Tokenizer

from tests.conftest import DEMO_MODEL

PROMPTS = [
    "The for statement",
    "A class is",
    "When an exception",
    "In Python, a function",
    "The with statement is used to",
    "import",
    "Return the",
    "Strings are",
    "If the object",
    "a",
    "An assignment",
    "The value of the expression",
    "Comparisons can be chained",
    "def f(x):\n    ",
    "The file is",
    "1 + 1",
    "Lists may be",
    "The module defines",
    "Raise an error if",
    "This is a long prompt. " * 20,
]


def encoded(prompts: list[str]) -> list[list[int]]:
    """Their token ids."""
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    return [tokenizer.encode(prompt).ids for prompt in prompts]
