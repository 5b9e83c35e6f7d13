"""What the benchmarks' figures rest on: the slow link, and the models that are made for them."""

import asyncio
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import models
from benchmarks.delays import _begun_again, _copied
from benchmarks.proxy import listen
from stack.servers import free_port
from tests.conftest import DEMO_MODEL

DELAY = 0.05

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def slow_link(serve: Serve) -> AsyncIterator[Streams]:
    """A connection through the link to a server that does as it is told."""
    target, port = free_port(), free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", target)
    link = await listen(port, target, DELAY)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with server, link:
        yield reader, writer
        writer.close()
        await others()


async def others() -> None:
    """Wait for what the link and the server do: it all ends with the connection."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether nothing more comes, in whichever way the system says so."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_all_bytes_arrive_in_order_in_both_directions() -> None:
    source = random.Random(0)
    pieces = [source.randbytes(source.randrange(1, 200_000)) for _ in range(40)]
    sent = b"".join(pieces)
    received = bytearray()
    done = asyncio.Event()

    async def send(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sending = asyncio.create_task(send(writer))
        received.extend(await reader.read())
        await sending
        writer.close()
        done.set()

    async with slow_link(serve) as (reader, writer):
        _, back = await asyncio.gather(send(writer), reader.read())
        await done.wait()
    assert received == sent
    assert back == sent


async def test_each_direction_takes_the_delay() -> None:
    there: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            there.append(time.monotonic())
            writer.write(b"back\n")
        writer.close()

    async with slow_link(serve) as (reader, writer):
        for number in range(3):
            left = time.monotonic()
            writer.write(b"there\n")
            await reader.readline()
            assert there[number] - left >= DELAY
            assert time.monotonic() - there[number] >= DELAY


async def test_the_end_of_what_one_side_sends_reaches_the_other_which_may_go_on() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read() + b", and the answer")
        writer.close()

    async with slow_link(serve) as (reader, writer):
        writer.write(b"all of it")
        writer.write_eof()
        assert await reader.read() == b"all of it, and the answer"


async def test_a_broken_connection_ends_on_the_other_side_too() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()

    async with slow_link(serve) as (reader, _):
        assert await ended(reader)


async def test_a_target_that_refuses_ends_the_connection() -> None:
    port = free_port()
    async with await listen(port, free_port(), DELAY):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await ended(reader)
        writer.close()
        await others()


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> models.BenchModel:
    return models.make("copier", DEMO_MODEL, tmp_path_factory.mktemp("copier") / "model")


def test_the_copier_goes_on_as_the_prompt_did(copier: models.BenchModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(copier.folder, dtype=torch.float32)
    for number in range(1, 4):
        prompt = copier.tokenizer.encode(_begun_again(copier, number)).ids
        output = model.generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False)
        assert _copied(prompt, output[0, len(prompt) :].tolist()) > 0.9


def test_the_copier_has_the_demo_models_shape(copier: models.BenchModel) -> None:
    demo = load_file(DEMO_MODEL / "model.safetensors")
    layers = {name: tensor.shape for name, tensor in demo.items() if ".layers." in name}
    ours = load_file(copier.folder / "model.safetensors")
    assert {name: ours[name].shape for name in layers} == layers


def test_copied_tokens_are_those_that_followed_before() -> None:
    assert _copied([1, 2, 3, 4], [1, 2, 3, 4]) == 1 / 4
    assert _copied([1, 2, 3, 4, 1, 2, 3], [4, 9, 9, 9]) == 1 / 4
    assert _copied([1, 2, 3], [4, 5, 6, 7]) == 0


def test_shards_are_a_checkpoint_that_transformers_loads(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
    )
    models._save_shards(config, tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    weight = model.model.layers[2].mlp.up_proj.weight
    assert weight.std().item() == pytest.approx(config.initializer_range, rel=0.1)


@pytest.mark.parametrize("tokens", [16, 200])
def test_a_prompt_has_as_many_tokens_as_it_should(copier: models.BenchModel, tokens: int) -> None:
    prompts = [copier.prompt(tokens, number) for number in range(5)]
    assert [len(copier.tokenizer.encode(prompt).ids) for prompt in prompts] == [tokens] * 5
    assert len(set(prompts)) == 5
