"""How much of a text one token of a tokenizer can stand for, so that a text too long for a context
is known without tokenizing it."""

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

COMPOSED_BYTES = 4
"""Bytes of a text by one byte of its canonical composition, at most: the worst are ``U+1FBE U+0308
U+0301``, seven bytes that become the two of ``U+0390``."""

LOSSLESS_STEPS = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split")
"""Pre-tokenizers that leave nothing out unless their behaviour says so."""


def most_bytes_a_token(tokenizer: Tokenizer) -> int | None:
    """Bytes of UTF-8 that one token stands for, at most; none if there may be no limit to them.

    There is a limit where no part of a text is left out and no token stands for whatever is
    unknown: with a byte-pair vocabulary that has all bytes. Of all other tokenizers nothing is
    said.
    """
    written = json.loads(tokenizer.to_str())
    model = written["model"]
    steps = list(_parts(written["pre_tokenizer"], "pretokenizers"))
    shrinking = _shrinking(list(_parts(written["normalizer"], "normalizers")))
    if (
        written["truncation"] is not None
        or shrinking is None
        or not all(_is_lossless(step) for step in steps)
        or any(token["lstrip"] or token["rstrip"] for token in written["added_tokens"])
        or model["type"] != "BPE"
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        return None
    vocabulary = model["vocab"].keys()
    added = [token["content"] for token in written["added_tokens"]]
    if tokenizer.normalizer is not None:
        added += [tokenizer.normalizer.normalize_str(content) for content in added]
    if any(step["type"] == "ByteLevel" for step in steps):  # each of its characters is a byte
        if not vocabulary >= set(ByteLevel.alphabet()):
            return None
        longest = max(map(len, vocabulary))
    elif model.get("byte_fallback"):
        if not vocabulary >= {f"<0x{byte:02X}>" for byte in range(256)}:
            return None
        longest = max(len(token.encode()) for token in vocabulary)
    else:
        return None
    return shrinking * max([longest, *(len(content.encode()) for content in added)])


def _parts(step: dict[str, Any] | None, members: str) -> Iterator[dict[str, Any]]:
    """A step, or the steps of a sequence of them."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[members]:
            yield from _parts(part, members)
    else:
        yield step


def _shrinking(steps: list[dict[str, Any]]) -> int | None:
    """Bytes of a text by one byte of what normalizers make of it; none if that is not known."""
    shrinking = 1
    for step in steps:
        if step["type"] == "NFC":
            shrinking *= COMPOSED_BYTES
        elif step["type"] == "Replace":
            replaced = step["pattern"].get("String")
            if replaced is None or len(replaced.encode()) > len(step["content"].encode()):
                return None
        elif step["type"] != "Prepend":
            return None
    return shrinking


def _is_lossless(step: dict[str, Any]) -> bool:
    return step["type"] in LOSSLESS_STEPS and step.get("behavior") != "Removed"
