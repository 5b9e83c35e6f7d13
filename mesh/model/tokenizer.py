"""A checkpoint's tokenizer.json, as transformers uses it."""

from pathlib import Path

from tokenizers import Tokenizer

NAME = "tokenizer.json"


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file, without the file's own truncation and padding: transformers applies
    them only where a call asks for them, and prompts are neither cut nor filled.

    Raises:
        Exception: what the library raises for a file that it cannot read.
    """
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
