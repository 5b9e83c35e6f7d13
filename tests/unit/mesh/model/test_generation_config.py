"""Settings of generation are followed, refused by name, or known to have no effect."""

from typing import Any

import pytest
import transformers

from mesh.errors import UnsupportedModel
from mesh.model.generation_config import (
    FOLLOWED,
    REFUSED,
    WITHOUT_EFFECT,
    GenerationConfig,
    effective_settings,
    read_generation_config,
)

VOCAB = 100


def test_every_setting_of_transformers_is_known_to_be_one_of_the_three() -> None:
    known = [*FOLLOWED, *REFUSED, *WITHOUT_EFFECT]
    settings = {
        name
        for name in vars(transformers.GenerationConfig())
        if not name.startswith("_") and name != "assistant_generation"
    }
    assert len(known) == len(set(known))
    assert settings <= set(known)
    assert set(known) - settings <= {"force_bos_token_to_be_generated"}  # of BART's config.json


def test_the_values_that_generate_sets_by_itself_are_taken() -> None:
    defaults = transformers.GenerationConfig._get_default_generation_params()
    assert read_generation_config(defaults, vocab_size=VOCAB) == GenerationConfig()
    nulls = dict.fromkeys([*FOLLOWED, *REFUSED])
    assert read_generation_config(nulls, vocab_size=VOCAB) == GenerationConfig()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"eos_token_id": None}, []),
        ({"eos_token_id": 7}, [7]),
        ({"eos_token_id": [7, 8, 7]}, [7, 8]),
        ({"eos_token_id": [7, 100, -1]}, [7]),
        ({"eos_token_id": []}, []),
    ],
)
def test_ends_in_all_their_forms(settings: dict[str, Any], expected: list[int]) -> None:
    read = read_generation_config(settings, vocab_size=VOCAB)
    assert read.eos_token_ids == frozenset(expected)
    assert not read.changes_logits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("num_beam_groups", 2),
        ("num_return_sequences", 2),
        ("guidance_scale", 1.5),
        ("sequence_bias", [[[1], -2.0]]),
        ("encoder_repetition_penalty", 1.2),
        ("encoder_no_repeat_ngram_size", 3),
        ("token_healing", True),
        ("watermarking_config", {"bias": 2.0}),
        ("max_time", 3.0),
        ("stop_strings", ["."]),
        ("penalty_alpha", 0.6),
        ("dola_layers", "low"),
        ("constraints", [1]),
        ("force_words_ids", [[1]]),
        ("cache_implementation", "quantized"),
        ("cache_implementation", ["static"]),
        ("is_assistant", True),
        ("force_bos_token_to_be_generated", True),
        ("diversity_penalty", 0.5),
        ("eos_token_id", "7"),
        ("eos_token_id", [[7]]),
        ("eos_token_id", 7.5),
        ("eos_token_id", True),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("inf")),
        ("repetition_penalty", "1.1"),
        ("no_repeat_ngram_size", -1),
        ("no_repeat_ngram_size", 2.5),
        ("bad_words_ids", [5]),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [[VOCAB]]),
        ("min_length", "3"),
        ("min_new_tokens", -3),
        ("forced_bos_token_id", [1, 2]),
        ("forced_bos_token_id", VOCAB),
        ("forced_eos_token_id", [VOCAB]),
        ("exponential_decay_length_penalty", [3]),
        ("exponential_decay_length_penalty", [3, -1.0]),
        ("exponential_decay_length_penalty", [3, 1.1]),  # nothing ends
        ("suppress_tokens", 5),
        ("begin_suppress_tokens", ["a"]),
        ("renormalize_logits", 1),
    ],
)
def test_what_is_not_followed_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnsupportedModel, match=name):
        read_generation_config({name: value}, vocab_size=VOCAB)


@pytest.mark.parametrize("name", ["forced_bos_token_id", "forced_eos_token_id"])
def test_a_token_is_not_forced_and_suppressed(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=name):
        read_generation_config({name: 3, "suppress_tokens": [3]}, vocab_size=VOCAB)


def test_what_transformers_does_not_know_changes_nothing() -> None:
    settings = {"chat_format": "chatml", "top_k": 20, "do_sample": True, "temperature": 0.6}
    assert read_generation_config(settings, vocab_size=VOCAB) == GenerationConfig()


def test_config_json_counts_where_there_is_no_generation_config_alone() -> None:
    config = {"eos_token_id": 3, "repetition_penalty": 1.2, "hidden_size": 8, "num_beams": None}
    assert effective_settings(config, None) == {"eos_token_id": 3, "repetition_penalty": 1.2}
    assert effective_settings(config, {}) == {}
