"""Models by OpenAI's own client."""

import openai
import pytest

from tests.conftest import MODEL_ID
from tests.support.gateway.api import Gateway


async def test_models_have_prices_and_limits(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    [model] = [each async for each in client.models.list()]
    assert (model.id, model.object, model.owned_by) == (MODEL_ID, "model", "far-mesh")
    extra = model.model_extra or {}
    assert extra["pricing"] == {
        "prompt": "0.00001",
        "completion": "0.0001",
        "input_cache_read": "0.000001",
    }
    assert extra["context_length"] == gateway.services.catalog.get(MODEL_ID).context
    assert extra["available"] is True
    assert extra["chat"] is True
    assert await client.models.retrieve(MODEL_ID) == model


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.models.retrieve("far/none")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("path", ["embeddings", "images/generations", "audio/speech"])
async def test_what_is_not_served_says_so(client: openai.AsyncOpenAI, path: str) -> None:
    with pytest.raises(openai.NotFoundError, match="no embeddings, images, audio"):
        await client.post(f"/{path}", body={"model": MODEL_ID, "input": "x"}, cast_to=object)
