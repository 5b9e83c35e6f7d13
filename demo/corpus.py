"""The corpus: prose that ships with CPython under the PSF licence, as paragraphs."""

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics

SKIPPED = {"test", "tests", "idle_test", "site-packages", "lib2to3", "turtledemo"} | {
    "encodings",  # a hundred times the same sentence about a table
    "pydoc_data",  # read as topics
}
OWN_LICENCE = re.compile(
    r"Permission to use, copy|Permission is (?:hereby )?granted|Redistribution and use"
    r"|All rights reserved|Licensed under the|SPDX-License-Identifier|GNU General Public",
    re.IGNORECASE,
)
HELD_OUT = 40  # every so many documents, one is for validation only
TERSE = 80  # characters: shorter docstrings ("Return the name.") teach no English
PUNCTUATION = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--")
LIST_ITEM = re.compile(r"\n(?=\s*(?:[*+-]|\d+[.)]) )")
UNDERLINE = re.compile(r"^([*=~^\-\"#])\1{2,}$", re.MULTILINE)
CODE = re.compile(
    r">>>|\w@\w|Copyright|::=|->|==|^\s*[@:]\w+|\w\.\w+\(.*\)\s*$|^\s*(?:def|class|import) ",
    re.MULTILINE,
)
MARKUP = [
    (re.compile(r"\s+"), " "),
    (re.compile(r"``?([^`]+)``?"), r"\1"),
    (re.compile(r'"([^"\s]+)"'), r"\1"),
    (re.compile(r"(?<!\w)\*(\w[^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"\s?\[\d+\]"), ""),
]


@dataclass(frozen=True)
class Document:
    """Paragraphs that belong together: one topic, or the docstrings of one module."""

    name: str
    paragraphs: list[str]
    repeats: int = 1  # how often an epoch sees it

    @property
    def bytes(self) -> int:
        return len("\n\n".join(self.paragraphs).encode())


def tidy(block: str) -> str:
    """One line of plain words: a reader's prompt has neither hard line breaks nor markup."""
    for pattern, replacement in MARKUP:
        block = pattern.sub(replacement, block)
    return block.strip()


def is_prose(paragraph: str) -> bool:
    """Sentences, not tables, grammar, signatures or code: what the model should sound like."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return (
        len(paragraph.split()) >= 6
        and letters / len(paragraph) > 0.88
        and paragraph[0] in "*-(\"'" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        and paragraph[-1] in ".:;!?)\"'"
    )


def prose(text: str) -> list[str]:
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text.translate(PUNCTUATION)))
    readable = [b for b in blocks if not UNDERLINE.search(b) and not CODE.search(b)]
    items = [tidy(item) for block in readable for item in LIST_ITEM.split(block)]
    return [item for item in items if item and is_prose(item)]


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def library_documents() -> tuple[list[Document], list[str]]:
    """Docstrings by module, and the modules left out because they carry a licence of their own."""
    library = Path(sysconfig.get_path("stdlib"))
    documents, left_out = [], []
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if SKIPPED & set(name.parts):
            continue
        source = path.read_text("utf-8")
        if OWN_LICENCE.search(source):
            left_out.append(str(name))
            continue
        paragraphs = [p for text in docstrings(source) for p in prose(text) if len(p) >= TERSE]
        documents.append(Document(str(name), paragraphs))
    return documents, left_out


def reference_documents() -> list[Document]:
    """The language reference, which prompts will mostly be about: hence seen more often."""
    return [Document(f"topic {name}", prose(text), repeats=2) for name, text in topics.items()]


def without_repeats(documents: list[Document]) -> list[Document]:
    """Topics share sections; a paragraph seen twice could sit in training and validation both."""
    seen: set[str] = set()
    unique = []
    for document in sorted(documents, key=lambda d: (-d.bytes, d.name)):
        fresh = [p for p in dict.fromkeys(document.paragraphs) if p not in seen]
        seen.update(fresh)
        if fresh:
            unique.append(replace(document, paragraphs=fresh))
    return unique


def is_held_out(index: int) -> bool:
    """Whether the document with this number is not learned from."""
    return index % HELD_OUT == HELD_OUT // 2
