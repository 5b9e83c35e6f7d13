"""A slow link on one machine: a TCP proxy that delays all bytes, in both directions.

`python -m benchmarks.running.proxy PORT TARGET_PORT SECONDS` runs one on loopback until it is
terminated; :class:`SlowLink` starts and stops that process. Unlike the kernel's netem it needs no
privileges, and it delays no other traffic. It adds latency only: bandwidth is the machine's,
nothing is lost, and a connection opens at once.
"""

import asyncio
import subprocess
import sys
import time

from stack.servers import START_LIMIT, StackError, free_port, port_in_use

CHUNK = 2**16
"""Bytes read at once."""

MAX_CHUNKS = 1024
"""Chunks in transit in one direction. Beyond, the sender waits, as on a full link."""


class SlowLink:
    """The process, started on entry and stopped on exit. Connect to ``port``."""

    def __init__(self, target_port: int, seconds: float) -> None:
        self.port = free_port()
        self._arguments = [str(self.port), str(target_port), str(seconds)]

    def __enter__(self) -> "SlowLink":
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.running.proxy", *self._arguments],
            start_new_session=True,
        )
        deadline = time.monotonic() + START_LIMIT
        while not port_in_use(self.port):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise StackError("The delaying proxy does not start.")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


async def listen(port: int, target_port: int, seconds: float) -> asyncio.Server:
    """Accept connections on loopback and connect each to the target; what either side sends
    reaches the other ``seconds`` later. So does the end of what it sends."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", target_port)
        except OSError:
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_forward(reader, target_writer, seconds))
                both.create_task(_forward(target_reader, writer, seconds))
        except* OSError:  # one side is gone: so it is for the other
            writer.transport.abort()
            target_writer.transport.abort()
        finally:
            writer.close()
            target_writer.close()

    return await asyncio.start_server(connect, "127.0.0.1", port)


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    """One direction, until its sender ends it."""
    now = asyncio.get_running_loop().time
    in_transit: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_CHUNKS)

    async def read_chunks() -> None:
        while True:
            chunk = await reader.read(CHUNK)
            await in_transit.put((now() + seconds, chunk))
            if not chunk:
                return

    async def write_chunks() -> None:
        while True:
            due, chunk = await in_transit.get()
            await asyncio.sleep(due - now())
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    async with asyncio.TaskGroup() as link:
        link.create_task(read_chunks())
        link.create_task(write_chunks())


async def _serve(port: int, target_port: int, seconds: float) -> None:
    server = await listen(port, target_port, seconds)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
