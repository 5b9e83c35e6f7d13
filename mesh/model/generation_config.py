"""What a checkpoint says of generation, read as transformers' `generate` reads it.

Every setting is followed, refused by name, or without effect on tokens that are chosen greedily.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.errors import UnsupportedModel

NAME = "generation_config.json"

FOLLOWED = frozenset(
    {
        "eos_token_id",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
        "min_length",
        "min_new_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "renormalize_logits",
    }
)
"""Settings that the edge's sampler follows."""

REFUSED: dict[str, tuple[object, ...]] = {
    "cache_implementation": (
        None,
        "dynamic",
        "hybrid",
        "offloaded",
        "offloaded_hybrid",
        "offloaded_static",
        "sliding_window",
        "static",
    ),
    "constraints": (None,),
    "diversity_penalty": (None, 0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1),
    "force_bos_token_to_be_generated": (None, False),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1),
    "is_assistant": (None, False),
    "max_time": (None,),
    "num_beam_groups": (None, 1),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None, 0),
    "sequence_bias": (None,),
    "stop_strings": (None, []),
    "token_healing": (None, False),
    "watermarking_config": (None,),
}
"""Settings under which `generate` chooses other tokens than the edge would, and the values under
which it does not. "quantized", a cache's implementation, rounds keys and values."""

WITHOUT_EFFECT = frozenset(
    {
        # A request says how its tokens are drawn, and how many there are at most.
        "do_sample",
        "epsilon_cutoff",
        "eta_cutoff",
        "max_length",
        "max_new_tokens",
        "min_p",
        "temperature",
        "top_h",
        "top_k",
        "top_p",
        "typical_p",
        # Of beam search alone.
        "early_stopping",
        "length_penalty",
        # Values that are not finite end a generation anyway.
        "remove_invalid_values",
        # Speculative decoding, which changes no token.
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "prompt_lookup_num_tokens",
        "speculation_type",
        "target_lookbehind",
        "use_mtp",
        # Tokens of padding, and before a prompt: the tokenizer makes prompts.
        "bos_token_id",
        "decoder_start_token_id",
        "pad_token_id",
        # How `generate` computes, and what it returns beside tokens.
        "cache_config",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "low_memory",
        "max_cache_len",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "prefill_chunk_size",
        "return_dict_in_generate",
        "transformers_version",
        "use_cache",
    }
)
"""Settings that change no token of a greedy generation. What transformers does not know changes
none either."""

MAX_LISTED = 2**20
"""Token ids in one setting, all together: more than any vocabulary has."""


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """Settings of a checkpoint that change which tokens are chosen; a setting's meaning is that of
    transformers' `GenerationConfig`. Token ids that the vocabulary does not have are left out where
    `generate` ignores them."""

    eos_token_ids: frozenset[int] = frozenset()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: frozenset[int] = frozenset()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: frozenset[int] = frozenset()
    begin_suppress_tokens: frozenset[int] = frozenset()
    renormalize_logits: bool = False

    @property
    def changes_logits(self) -> bool:
        """Whether the likeliest token may not be the one to choose."""
        return self != GenerationConfig(eos_token_ids=self.eos_token_ids)


def effective_settings(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Settings of generation that count: those of generation_config.json, and where there is no
    such file, those in config.json.

    Args:
        config: The model's config.json as it was published.
        generation_config: Its generation_config.json; none if there is no such file.
    """
    if generation_config is not None:
        return dict(generation_config)
    known = FOLLOWED | WITHOUT_EFFECT | REFUSED.keys()
    return {name: value for name, value in config.items() if name in known and value is not None}


def read_generation_config(settings: Mapping[str, Any], *, vocab_size: int) -> GenerationConfig:
    """Read settings of generation.

    Args:
        settings: As :func:`effective_settings` gives them.
        vocab_size: Rows of the model's embedding.

    Raises:
        UnsupportedModel: a setting that is not followed, or one whose value `generate` would not
            take; the error names it.
    """
    for name, neutral in REFUSED.items():
        value = settings.get(name)
        if name == "cache_implementation" and not isinstance(value, str | None):
            raise _refused(name, value)
        if value not in neutral:
            raise UnsupportedModel(
                f"The checkpoint asks for {name} = {_shown(value)} in its generation settings, "
                "which is not followed here. Remove it if the model can do without."
            )
    read = _Reader(settings, vocab_size)
    eos = read.ids("eos_token_id", single=True, known=False)
    min_new_tokens = read.count("min_new_tokens")
    no_eos = frozenset((token,) for token in eos)
    decay = read.decay("exponential_decay_length_penalty")
    if decay is not None and not eos:
        raise UnsupportedModel(
            "The checkpoint asks for exponential_decay_length_penalty, but has no eos_token_id."
        )
    suppressed = read.ids("suppress_tokens", known=False)
    first, last = read.token("forced_bos_token_id"), read.ids("forced_eos_token_id", single=True)
    if first in suppressed or (last and last <= suppressed):
        raise UnsupportedModel(
            "The checkpoint asks for forced_bos_token_id or forced_eos_token_id, and suppresses "
            "that token: its suppress_tokens has it."
        )
    return GenerationConfig(
        eos_token_ids=eos,
        repetition_penalty=read.penalty("repetition_penalty"),
        no_repeat_ngram_size=read.count("no_repeat_ngram_size") or 0,
        bad_words_ids=tuple(word for word in read.sequences("bad_words_ids") if word not in no_eos),
        min_length=read.count("min_length") or 0 if min_new_tokens is None else 0,
        min_new_tokens=min_new_tokens or 0,
        forced_bos_token_id=first,
        forced_eos_token_ids=last,
        exponential_decay_length_penalty=decay,
        suppress_tokens=suppressed,
        begin_suppress_tokens=read.ids("begin_suppress_tokens", known=False),
        renormalize_logits=read.value("renormalize_logits", bool, "true or false") or False,
    )


class _Reader:
    """Values of settings by their kind. Each method raises ``UnsupportedModel``, which names the
    setting, for a value of another kind; a setting that is absent or null is none."""

    def __init__(self, settings: Mapping[str, Any], vocab_size: int) -> None:
        self._settings = settings
        self._vocab_size = vocab_size

    def value(self, name: str, kind: type, described: str) -> Any:
        found = self._settings.get(name)
        if found is not None and type(found) is not kind:
            raise _refused(name, found, described)
        return found

    def count(self, name: str) -> int | None:
        found: int | None = self.value(name, int, "a number of tokens")
        if found is not None and found < 0:
            raise _refused(name, found, "a number of tokens")
        return found

    def token(self, name: str) -> int | None:
        found: int | None = self.value(name, int, "a token id")
        if found is not None and not 0 <= found < self._vocab_size:
            raise _refused(name, found, f"a token id below {self._vocab_size}")
        return found

    def penalty(self, name: str) -> float:
        found = self._settings.get(name)
        if found is None:
            return 1.0
        if not _is_factor(found):
            raise _refused(name, found, "a number above 0")
        return float(found)

    def ids(self, name: str, *, single: bool = False, known: bool = True) -> frozenset[int]:
        """Token ids.

        Args:
            name: Of the setting.
            single: Whether it may be one id instead of a list.
            known: Whether an id that the vocabulary does not have is refused; else left out.
        """
        found = self._settings.get(name)
        if found is None:
            return frozenset()
        listed = [found] if single and type(found) is int else found
        if not isinstance(listed, list) or len(listed) > MAX_LISTED:
            raise _refused(name, found, "token ids")
        if not all(type(token) is int for token in listed):
            raise _refused(name, found, "token ids")
        inside = frozenset(token for token in listed if 0 <= token < self._vocab_size)
        if known and len(inside) < len(set(listed)):
            raise _refused(name, found, f"token ids below {self._vocab_size}")
        return inside

    def sequences(self, name: str) -> tuple[tuple[int, ...], ...]:
        found = self._settings.get(name)
        if found is None:
            return ()
        if (
            not isinstance(found, list)
            or not all(isinstance(word, list) and word for word in found)
            or sum(map(len, found)) > MAX_LISTED
            or not all(type(token) is int for word in found for token in word)
            or not all(0 <= token < self._vocab_size for word in found for token in word)
        ):
            raise _refused(name, found, f"lists of token ids below {self._vocab_size}")
        return tuple(dict.fromkeys(tuple(word) for word in found))

    def decay(self, name: str) -> tuple[int, float] | None:
        found = self._settings.get(name)
        if found is None:
            return None
        if (
            not isinstance(found, list | tuple)
            or len(found) != 2
            or type(found[0]) is not int
            or not _is_factor(found[1])
        ):
            raise _refused(name, found, "a number of tokens and a factor")
        return found[0], float(found[1])


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _refused(name: str, value: object, described: str | None = None) -> UnsupportedModel:
    wanted = f" It has to be {described}." if described else ""
    return UnsupportedModel(
        f"The checkpoint's generation settings have {name} = {_shown(value)}.{wanted}"
    )


def _shown(value: object) -> str:
    """A value of a setting, in few characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
