"""When the tokens of one measurement came, and the rates that follow from that."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenTiming:
    """Seconds from the request to the first and to the last of ``tokens`` tokens.

    Of several generations at once: from the first request, to the first and the last token of all.
    """

    first: float
    last: float
    tokens: int

    @property
    def decoding(self) -> float:
        """Tokens a second after the first one: what streaming feels like."""
        return (self.tokens - 1) / (self.last - self.first)

    @property
    def overall(self) -> float:
        """Tokens a second from the request on, prompt included."""
        return self.tokens / self.last
