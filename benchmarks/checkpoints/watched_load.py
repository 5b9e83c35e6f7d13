"""Loads spans in a child process, and measures its memory from outside.

`python -m benchmarks.checkpoints.watched_load` takes one JSON object a line (a model's folder,
layers, cache, dtype and quantization), loads that span and answers with its bytes; another line
lets go of it. :class:`Loader` is the other end of that pipe.
"""

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEMO_MODEL = Path(__file__).parents[2] / "demo" / "model"

SAMPLING = 0.001
"""Seconds between two readings of the memory."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Bytes. ``span``: of the weights in memory. ``peak``: of memory that no file backs, above what
    the process had before. ``kept``: the same, once all was loaded."""

    span: int
    peak: int
    kept: int


class Loader:
    """The process, started on entry and stopped on exit."""

    def __enter__(self) -> "Loader":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.checkpoints.watched_load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def load(
        self, source: Path, layers: tuple[int, int], cache: Path, dtype: str, quantization: str
    ) -> Loaded:
        """Load a span without the edge, on CPU, and let go of it again.

        What libraries take when they are first used is not counted: a small span comes before.
        """
        self._ask([str(DEMO_MODEL), 2, 4, str(cache), dtype, quantization])
        self._ask(None)
        before = self._anonymous()
        self._send([str(source), *layers, str(cache), dtype, quantization])
        peak = before
        while not select.select([self._process.stdout], [], [], SAMPLING)[0]:
            peak = max(peak, self._anonymous())
        span, kept = self._receive(), self._anonymous()
        self._ask(None)
        return Loaded(span, peak - before, kept - before)

    def _ask(self, request: object) -> int:
        self._send(request)
        return self._receive()

    def _send(self, request: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def _receive(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The loading process ended with code {self._process.wait()}.")
        return int(line)

    def _anonymous(self) -> int:
        """Bytes of the process's memory that no file backs."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if "RssAnon" in line), 0)


def serve() -> None:
    """Answer requests from stdin until it closes."""
    # Imported here: the other end of the pipe needs no torch.
    import torch  # noqa: PLC0415

    from mesh import log  # noqa: PLC0415
    from node_runner.engine.device.tensors import DTYPES  # noqa: PLC0415
    from node_runner.engine.model.span_checkpoint import prepare_span  # noqa: PLC0415
    from node_runner.engine.model.span_model import SpanModel  # noqa: PLC0415

    log.configure(json=True)  # to standard error: answers alone go to standard output
    torch.set_num_threads(1)
    for line in sys.stdin:
        span = None
        if request := json.loads(line):
            source, start, end, cache, dtype, quantization = request
            folder, _ = prepare_span(source, layers=(start, end), edge=False, cache=Path(cache))
            span = SpanModel(
                folder,
                edge=False,
                device=torch.device("cpu"),
                dtype=DTYPES[dtype],
                quantization=quantization,
            )
        print(sum(weight.nbytes for weight in span.weights) if span else 0, flush=True)


if __name__ == "__main__":
    serve()
