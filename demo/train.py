"""Trains the demo model: a Llama small enough to commit, whose text is still recognisably English.

Everything it learns from ships with CPython under the PSF licence: the language reference in
`pydoc_data.topics` and the docstrings of the standard library, prose only. No network and no
downloads; the same interpreter, libraries and seed give the same tokenizer and the same batches.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import random
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from corpus import (
    Document,
    is_held_out,
    library_documents,
    reference_documents,
    without_repeats,
)
from loss_curve import Measurement, write_curve
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

HERE = Path(__file__).parent
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
IGNORED = -100  # the label that cross_entropy skips
VOCABULARY = 2048
CONTEXT = 1024
SHORT_CONTEXT = 256
SHORT_SHARE = 0.7  # of the steps
CUT = 0.1  # how often a paragraph stands first, as a prompt would
MAX_CHECKPOINT_BYTES = 8_000_000  # it is committed to git, so it stays small

NUCLEUS = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
SAMPLE_PROMPTS = [
    "The for statement",
    "A class is",
    "When an exception",
    "In Python, a function",
]

app = typer.Typer(add_completion=False)
console = Console()


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn."""

    steps: int
    tokens_per_step: int
    peak_rate: float
    decay: float
    every: int
    seed: int


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)],
    )
    return tokenizer


def encode_paragraphs(tokenizer: Tokenizer, document: Document) -> list[list[int]]:
    last = len(document.paragraphs) - 1
    texts = [p + ("\n\n" if i < last else "") for i, p in enumerate(document.paragraphs)]
    return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def passages(
    documents: list[list[list[int]]], cut: float, shuffle: random.Random
) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens and labels of documents cut at random paragraphs, each piece behind end-of-text.

    A prompt may begin like any paragraph, so any paragraph may stand first. The label of an
    end-of-text that merely marks a cut is ignored: only a document's real end teaches to stop.
    """
    order = list(documents)
    shuffle.shuffle(order)
    for document in order:
        for index, paragraph in enumerate(document):
            starts = index == 0
            if starts or shuffle.random() < cut:
                yield [END_OF_TEXT_ID], [END_OF_TEXT_ID if starts else IGNORED]
            yield paragraph, paragraph


def windows(
    documents: list[list[list[int]]], length: int, cut: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One epoch: inputs and next-token labels, [windows, length] each."""
    stream: list[int] = []
    labels: list[int] = []
    for tokens, targets in passages(documents, cut, random.Random(seed)):
        stream += tokens
        labels += targets
    count = (len(stream) - 1) // length
    inputs = torch.tensor(stream[: count * length]).view(count, length)
    return inputs, torch.tensor(labels[1 : count * length + 1]).view(count, length)


def epochs(
    documents: list[list[list[int]]], length: int, rows: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches without end; each epoch is cut and shuffled anew."""
    for epoch in itertools.count(seed):
        inputs, labels = windows(documents, length, CUT, epoch)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(rows):
            yield inputs[chosen], labels[chosen]


def batches(
    documents: list[list[list[int]]], plan: Plan
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Short windows first, being faster; the last steps teach the full context."""
    short = round(plan.steps * SHORT_SHARE)
    yield from itertools.islice(
        epochs(documents, SHORT_CONTEXT, plan.tokens_per_step // SHORT_CONTEXT, plan.seed), short
    )
    yield from itertools.islice(
        epochs(documents, CONTEXT, plan.tokens_per_step // CONTEXT, plan.seed + 10_000),
        plan.steps - short,
    )


def build_model() -> LlamaForCausalLM:
    """Six layers cut evenly into 1, 2, 3 or 6 spans; fewer key-value heads than heads."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=None,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=inputs, use_cache=False).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED
    )


@torch.inference_mode()
def validate(model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    pairs = list(zip(inputs.split(4), labels.split(4), strict=True))
    total = sum(loss_of(model, i, t).item() * len(i) for i, t in pairs)
    model.train()
    return total / len(inputs)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warmup, then a cosine down to a hundredth of the peak."""
    warmup = min(100, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer_of(model: LlamaForCausalLM, decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def train(
    model: LlamaForCausalLM,
    documents: list[list[list[int]]],
    held_out: tuple[torch.Tensor, torch.Tensor],
    plan: Plan,
) -> list[Measurement]:
    optimizer = optimizer_of(model, plan.decay)
    history: list[Measurement] = []
    recent: list[float] = []
    started = time.monotonic()
    for step, (inputs, labels) in enumerate(batches(documents, plan)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan.steps, plan.peak_rate)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, inputs, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
            point = Measurement(step + 1, sum(recent) / len(recent), validate(model, *held_out))
            history.append(point)
            recent.clear()
            console.print(
                f"step {point.step:>5}/{plan.steps}  train {point.train_loss:.3f}  "
                f"validation {point.validation_loss:.3f}  {time.monotonic() - started:.0f} s"
            )
    return history


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Half precision, written aside and moved in file by file: a reader never sees half a file."""
    half = LlamaForCausalLM(model.config).to(torch.float16)
    half.load_state_dict(model.state_dict())
    if not all(torch.isfinite(p).all() for p in half.parameters()):
        raise SystemExit("a weight does not fit into float16")
    half.config.dtype = "float16"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".model-") as aside:
        half.save_pretrained(aside)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            model_max_length=CONTEXT,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(aside)
        if (size := (Path(aside) / "model.safetensors").stat().st_size) > MAX_CHECKPOINT_BYTES:
            raise SystemExit(f"{size} bytes are too many to commit")
        for file in Path(aside).iterdir():
            file.chmod(0o644)
            os.replace(file, folder / file.name)


def check_tokenizers_agree(folder: Path, texts: list[str]) -> None:
    """The gateway tokenizes without transformers; it must see what the model was trained on."""
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rich = AutoTokenizer.from_pretrained(folder)
    for text in texts:
        ids = plain.encode(text).ids
        if ids != rich(text)["input_ids"] or plain.decode(ids) != text:
            raise SystemExit(f"tokenizers disagree about {text[:60]!r}")


def show_samples(folder: Path, prompts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt")
        for how in ({"do_sample": False}, NUCLEUS):
            torch.manual_seed(0)
            output = model.generate(**tokens, max_new_tokens=80, **how)
            console.rule("sampled" if how["do_sample"] else "greedy")
            console.print(tokenizer.decode(output[0], skip_special_tokens=True), markup=False)


@app.command(help=__doc__)
def main(
    *,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 3400,
    tokens_per_step: Annotated[int, typer.Option(help="A multiple of 1024.")] = 2048,
    peak_rate: Annotated[float, typer.Option(help="AdamW's learning rate after warmup.")] = 3e-3,
    decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 0.1,
    every: Annotated[int, typer.Option(help="Steps between two measurements.")] = 50,
    seed: Annotated[int, typer.Option(help="For weights, cuts and order.")] = 7,
    threads: Annotated[int, typer.Option(help="Threads that torch may use.")] = 2,
    output: Annotated[
        Path, typer.Option(help="Where model/ and loss.* go.", show_default="beside this script")
    ] = HERE,
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    disable_progress_bar()
    started = time.monotonic()
    library, left_out = library_documents()
    documents = without_repeats(library + reference_documents())
    texts = ["\n\n".join(d.paragraphs) for d in documents]
    console.print(
        f"Python {platform.python_version()}: {len(documents)} documents, "
        f"{sum(d.bytes for d in documents)} bytes; left out for their own licence: {left_out}"
    )
    tokenizer = train_tokenizer(texts)
    encoded = [encode_paragraphs(tokenizer, d) for d in documents]
    held_out = [tokens for index, tokens in enumerate(encoded) if is_held_out(index)]
    learned = [
        tokens
        for index, (document, tokens) in enumerate(zip(documents, encoded, strict=True))
        if not is_held_out(index)
        for _ in range(document.repeats)
    ]
    validation = windows(held_out, CONTEXT, cut=0.0, seed=0)
    model = build_model()
    console.print(
        f"{model.num_parameters()} parameters; {sum(len(p) for d in learned for p in d)} tokens "
        f"an epoch, {validation[0].numel()} to validate"
    )
    plan = Plan(steps, tokens_per_step, peak_rate, decay, every, seed)
    history = train(model, learned, validation, plan)
    output.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, output / "model")
    write_curve(history, output)
    shutil.copy(Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", output / "CORPUS_LICENSE")
    check_tokenizers_agree(output / "model", [p for d in documents for p in d.paragraphs])
    stored = AutoModelForCausalLM.from_pretrained(output / "model", dtype=torch.float32)
    console.print(
        f"validation in float32: trained {validate(model, *validation):.4f}, "
        f"stored as float16 {validate(stored, *validation):.4f}; "
        f"{time.monotonic() - started:.0f} s in all"
    )
    show_samples(output / "model", SAMPLE_PROMPTS)


if __name__ == "__main__":
    app()
