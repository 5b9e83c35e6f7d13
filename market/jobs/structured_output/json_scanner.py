"""Where a JSON object ends in a text that comes in pieces."""

import re

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')


class ObjectScanner:
    """Follows brackets and strings from an object's opening bracket on; what stands between them is
    not looked at.

    Args:
        depth: Brackets that are open where it begins.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def scan(self, text: str, begin: int, depth: int) -> int | None:
        """The index behind the bracket that leaves ``depth`` open; none if the text ends before.

        Args:
            text: In which the object goes on.
            begin: Index in it, behind all that was scanned before.
            depth: Less than are open now, or will be.
        """
        at = begin
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_INSIDE if self._in_string else _OUTSIDE).search(text, at)
            if found is None:
                return None
            at = found.end()
            match found[0]:
                case '"':
                    self._in_string = not self._in_string
                case "\\":
                    self._escaped = True
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if self._depth == depth:
                        return at
        return None
