"""`far-mesh models`: weights for those who serve them."""

from pathlib import Path
from typing import Annotated

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from cli.console import console, fail
from market.catalog.weight_uploads import Bucket
from mesh.checkpoint.manifest import NAME, Manifest, make_manifest, published_files
from mesh.errors import MeshError
from stack import gguf_checkpoint

app = typer.Typer(help="Models' weights.", no_args_is_help=True)


@app.command()
def publish(
    folder: Annotated[
        Path,
        typer.Argument(help="Checkpoint: config.json, tokenizer.json and .safetensors files."),
    ],
    model: Annotated[str, typer.Option(help="The model's id on the platform.")],
    s3: Annotated[
        str | None,
        typer.Option(help="BUCKET/PREFIX to upload to. Credentials are boto3's usual ones."),
    ] = None,
) -> None:
    """Write a manifest with the hash of every tensor into the folder; with --s3, upload it all.

    Nodes check what they fetch against it. Without --s3, serve the folder from any web server that
    gives ranges, and name its URL in the settings.
    """
    try:
        made = _with_manifest(folder, model)
        if s3 is not None:
            _upload(folder, made, Bucket.at(s3))
    except (MeshError, OSError, BotoCoreError, ClientError) as error:
        fail(error)
    size = sum(file.size for file in made.files.values())
    console.print(
        f"{model}: {len(made.tensors)} tensors in {len(made.files)} files, {size / 1e9:.2f} GB. "
        f"The manifest is {folder / NAME}.",
        soft_wrap=True,
    )
    console.print(
        "In the settings of the gateway, at this model: "
        + (f's3: "{s3}"' if s3 else "weights_url: the URL under which the folder is served"),
        soft_wrap=True,
    )


@app.command("import")
def import_model(
    file: Annotated[Path, typer.Argument(help="GGUF file of a whole model.")],
    to: Annotated[
        Path | None,
        typer.Option(help="Folder for the checkpoint; the file's name without .gguf by default."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help=f"Of the weights: {', '.join(gguf_checkpoint.DTYPES)}.")
    ] = gguf_checkpoint.DTYPES[0],
) -> None:
    """Make a checkpoint of a GGUF file: weights dequantized once, tokenizer, chat template.

    The folder can then be offered and served like any other checkpoint.
    """
    if missing := gguf_checkpoint.missing_packages():
        fail(
            f"GGUF is read by packages that are not installed ({', '.join(missing)}): "
            "pip install 'far-mesh[gguf]'"
        )
    if dtype not in gguf_checkpoint.DTYPES:
        fail(f"--dtype is one of {', '.join(gguf_checkpoint.DTYPES)}; got {dtype!r}.")
    folder = to or Path(file.stem)
    try:
        gguf_checkpoint.import_gguf(file, folder, dtype, lambda line: console.print(f"· {line}"))
    except (MeshError, OSError) as error:
        fail(error)
    console.print(f"{folder} is a checkpoint. Try it: far-mesh up --model {folder}", soft_wrap=True)


def _with_manifest(folder: Path, model: str) -> Manifest:
    total = sum(path.stat().st_size for path in published_files(folder))
    with _bar() as bar:
        hashing = bar.add_task("hashing", total=total)
        made = make_manifest(folder, model, lambda size: bar.advance(hashing, size))
    (folder / NAME).write_bytes(made.to_bytes())
    return made


def _upload(folder: Path, made: Manifest, bucket: Bucket) -> None:
    """The manifest last: it names only what is there."""
    total = sum(file.size for file in made.files.values())
    with _bar() as bar:
        uploading = bar.add_task("uploading", total=total)
        for name, file in made.files.items():
            bucket.put(folder / name, file.sha256, lambda size: bar.advance(uploading, size))
        bucket.put_bytes(NAME, made.to_bytes())


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    return Progress(*columns, console=console)
