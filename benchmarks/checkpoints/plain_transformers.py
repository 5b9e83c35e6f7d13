"""Plain `transformers.generate` in a process of its own, with one thread.

`python -m benchmarks.checkpoints.plain_transformers FOLDER` takes one JSON object a line
(``prompts``: token ids, all of one length; ``new_tokens``) and answers each with one: seconds to
the first and to the last token, and the token ids. :class:`Plain` is the other end of that pipe.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from benchmarks.common.timing import TokenTiming


class Plain:
    """The process, started on entry and stopped on exit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> "Plain":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.checkpoints.plain_transformers", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[TokenTiming, list[list[int]]]:
        """One batch, greedy: its timing, and the new token ids by prompt."""
        print(
            json.dumps({"prompts": prompts, "new_tokens": new_tokens}),
            file=self._process.stdin,
            flush=True,
        )
        answers: IO[str] | None = self._process.stdout
        line = answers.readline() if answers else ""
        if not line:
            raise RuntimeError(f"The plain process ended with code {self._process.wait()}.")
        answer = json.loads(line)
        timing = TokenTiming(answer["first"], answer["last"], len(prompts) * new_tokens)
        return timing, answer["token_ids"]


def serve(folder: str) -> None:
    """Answer requests from stdin until it closes."""
    # Imported here: the other end of the pipe needs no torch.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415
    from transformers.generation import BaseStreamer  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    class Clock(BaseStreamer):
        """Notes when each step's tokens are there; the first call brings the prompt."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None: ...

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for line in sys.stdin:
        request = json.loads(line)
        prompts = torch.tensor(request["prompts"])
        clock = Clock()
        began = time.perf_counter()
        output = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=request["new_tokens"],
            do_sample=False,
            streamer=clock,
        )
        answer = {
            "first": clock.times[1] - began,
            "last": clock.times[-1] - began,
            "token_ids": output[:, prompts.shape[1] :].tolist(),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
