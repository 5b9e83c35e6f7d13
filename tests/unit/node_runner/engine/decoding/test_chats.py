"""A chat through the spans of several nodes is what transformers makes of it: its template, the
checkpoint's generation settings, and the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from market.catalog.models import Model, load_model
from market.chat.preparation import Chat, prepare
from market.jobs.request import JobRequest
from market.jobs.submission import prompt_tokens
from market.settings.models import ModelSettings
from tests.support.engine.pipeline import GREEDY, Pipeline
from tests.support.gateway.chat_model import make_chat_model

SETTINGS = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 4, "eos_token_id": 0}

NEW_TOKENS = 40

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What does the for statement do?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "The return value"},
        {"role": "assistant", "content": "The return value is a string."},
        {"role": "user", "content": "The return value"},
    ],
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_chat_model(tmp_path_factory.mktemp("models") / "chat")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | SETTINGS))
    return folder


@pytest.fixture(scope="module")
def on_offer(source: Path) -> Model:
    return load_model(ModelSettings(id="chat", path=str(source), payment_per_token="1"))


@pytest.fixture(scope="module")
def expected(source: Path) -> list[list[int]]:
    """What transformers generates for each chat."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    texts = []
    for chat in CHATS:
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        texts.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return texts


@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 2, 4, 6)])
def test_greedy_chats_are_what_transformers_gives(
    source: Path,
    on_offer: Model,
    expected: list[list[int]],
    cuts: tuple[int, ...],
    tmp_path: Path,
) -> None:
    pipeline = Pipeline.cut(source, cuts, tmp_path)
    for number, messages in enumerate(CHATS):
        prompt = prepare(on_offer, Chat(messages)).prompt
        request = JobRequest(on_offer.id, [prompt], NEW_TOKENS, GREEDY)
        [token_ids] = prompt_tokens.tokenize(on_offer, request)
        pipeline.open(str(number), token_ids, max_tokens=NEW_TOKENS)
    pipeline.run()
    assert [pipeline.tokens(str(number)) for number in range(len(CHATS))] == expected
