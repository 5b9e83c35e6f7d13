"""A generation's grammar, and what it may cost to follow it.

A grammar is a text in llguidance's form. The gateway, which checks it, and the edge, which follows
it, have equal limits: what one lets pass, the other can follow with a tokenizer that is fit for it.
"""

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=2_000,
    max_lexer_states=100_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)
"""llguidance's own limits, but for the states of a lexer: with as many, a matcher takes 50 MB at
most. Strings with a limit of length take four states a character, so that an answer can have 24,000
characters of them. Errors quote neither the grammar nor what was generated."""


class GrammarRefused(ValueError):
    """A grammar that cannot be followed: it is wrong, too costly, or not for this vocabulary; or a
    text that does not follow it."""


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at the beginning of a text. A costly grammar takes a processor for a third of a
    second, in which other threads run.

    Raises:
        GrammarRefused: the grammar cannot be followed.
    """
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise GrammarRefused(matcher.get_error())
    return matcher
