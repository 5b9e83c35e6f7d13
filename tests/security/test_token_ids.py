"""Token ids that have no row of the embedding: an added token's, or made up in a message."""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from tokenizers import AddedToken, Tokenizer

from market.settings import Settings
from mesh.wire.refusal_codes import INVALID_REQUEST
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.engine.models import save_random
from tests.support.engine.pipeline import Pipeline
from tests.support.engine.tokenizers import byte_fallback_bpe
from tests.support.gateway.api import GENERATE, Gateway, all_nodes, open_gateway, problem
from tests.support.gateway.api import request_body as body

ADDED = "<|fim|>"
VOCABULARY = 300
PROMPT = [5, 280, 290]


@pytest.fixture
async def gateway(
    make_settings: Callable[..., Settings], redis: Redis, tmp_path: Path
) -> AsyncIterator[Gateway]:
    """Offers a model whose tokenizer has a token more than its embedding has rows."""
    shutil.copy(DEMO_MODEL / "config.json", tmp_path)
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(ADDED, special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = {"id": MODEL_ID, "path": str(tmp_path), "payment_per_token": "0.0001"}
    async with open_gateway(make_settings(models=[model])) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


async def test_the_gateway_refuses_a_prompt_with_such_a_token(gateway: Gateway) -> None:
    before = await gateway.books()
    answer = await gateway.client.post(GENERATE, json=body(prompt=f"a {ADDED} b"))
    document = problem(answer, 422, "prompt_token_unknown")
    assert ADDED in document["detail"]
    assert await gateway.books() == before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return save_random(folder, byte_fallback_bpe(), vocab_size=VOCABULARY)


@pytest.mark.parametrize("token", [VOCABULARY, 2**31, 2**63, 2**64 - 1, -1, -(2**63)])
@pytest.mark.parametrize("generated", [False, True])
def test_the_edge_refuses_them(model: Path, tmp_path: Path, token: int, generated: bool) -> None:
    """In a prompt, and among the tokens of an earlier edge; a bystander gets his tokens."""
    pipeline = Pipeline.cut(model, [0, 2, 4], tmp_path)
    pipeline.open("alone", PROMPT, max_tokens=9)
    pipeline.run()
    pipeline.open("bystander", PROMPT, max_tokens=9)
    for _ in range(3):
        pipeline.step_all()
    if generated:
        pipeline.open("attack", PROMPT, max_tokens=9, epoch=2, generated=[7, token])
    else:
        pipeline.open("attack", [*PROMPT, token, 7], max_tokens=9)
    pipeline.run()
    refused = [(each.request_id, each.node_id, each.code) for each in pipeline.refused]
    assert refused == [("attack", "0", INVALID_REQUEST)]
    assert pipeline.tokens("bystander") == pipeline.tokens("alone")
    assert "attack" not in pipeline.written
