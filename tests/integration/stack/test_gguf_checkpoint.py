"""A GGUF file becomes a checkpoint that is offered and served like any other, or says why not."""

import shutil
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from typer.testing import CliRunner

from cli.app import app
from market.catalog.models import load_model
from market.settings.models import ModelSettings
from mesh.errors import DiskFull, UnsupportedModel, WeightsMissing, WeightsRefused
from stack.gguf_checkpoint import import_gguf
from tests.support.chat.conversations import user
from tests.support.engine.gguf import save_llama


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def imported(file: Path, folder: Path, dtype: str = "float32") -> list[str]:
    said: list[str] = []
    import_gguf(file, folder, dtype, said.append)
    return said


def test_a_checkpoint_computes_what_the_file_does(file: Path, tmp_path: Path) -> None:
    said = imported(file, tmp_path / "made")
    assert said[0] == "Reading tiny.gguf"
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True)
    )
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(made(ids).logits, read(ids).logits)
    assert made.generation_config.eos_token_id == 1


def test_it_is_offered_with_tokenizer_and_chat_template(file: Path, tmp_path: Path) -> None:
    imported(file, tmp_path / "made", "bfloat16")
    model = load_model(
        ModelSettings(id="m", path=str(tmp_path / "made"), payment_per_token=Decimal(1))
    )
    assert (model.layers, model.context) == (3, 256)
    assert model.chat_template is not None
    text = model.chat_template.render([user("Hi <there>")])
    assert text == "<|im_start|>user\nHi <there><|im_end|>\n<|im_start|>assistant\n"
    reference = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    expected = reference.apply_chat_template(
        [user("Hi <there>")], add_generation_prompt=True, return_dict=False
    )
    assert model.tokenizer.encode(text, add_special_tokens=False).ids == expected


def test_weights_are_kept_as_asked(file: Path, tmp_path: Path) -> None:
    for dtype in ("float16", "bfloat16"):
        imported(file, tmp_path / dtype, dtype)
        made = AutoModelForCausalLM.from_pretrained(tmp_path / dtype, dtype="auto")
        assert made.dtype == getattr(torch, dtype)


def test_an_empty_folder_is_taken_and_another_not(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    imported(file, folder)
    before = sorted(folder.iterdir())
    with pytest.raises(FileExistsError, match="not empty"):
        imported(file, folder)
    with pytest.raises(FileExistsError, match="not empty"):
        imported(file, file)
    assert sorted(folder.iterdir()) == before
    assert sorted(tmp_path.iterdir()) == [folder]


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="There is no file"):
        imported(tmp_path / "none.gguf", tmp_path / "made")
    with pytest.raises(WeightsMissing, match="There is no file"):
        imported(tmp_path, tmp_path / "made")


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04", b'{"a": 1}'])
def test_another_file_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(WeightsRefused, match="not a GGUF file"):
        imported(tmp_path / "other.gguf", tmp_path / "made")


def test_a_part_of_a_model_is_told(file: Path, tmp_path: Path) -> None:
    part = tmp_path / "big-00001-of-00002.gguf"
    part.write_bytes(file.read_bytes())
    with pytest.raises(WeightsRefused, match="Merge the parts"):
        imported(part, tmp_path / "made")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_is_refused_and_leaves_nothing(
    share: float, file: Path, tmp_path: Path
) -> None:
    whole = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsRefused, match=r"cut\.gguf cannot be read"):
        imported(cut, tmp_path / "made")
    assert sorted(tmp_path.iterdir()) == [cut]


@pytest.mark.parametrize("family", ["mamba", "unheard_of"])
def test_a_family_that_is_not_served_is_named(family: str, tmp_path: Path) -> None:
    file = save_llama(tmp_path / "other.gguf", family=family)
    with pytest.raises(UnsupportedModel, match=family):
        imported(file, tmp_path / "made")
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_template_that_does_not_compile_is_refused(tmp_path: Path) -> None:
    file = save_llama(tmp_path / "broken.gguf", template="{% for %}")
    with pytest.raises(UnsupportedModel, match="chat template"):
        imported(file, tmp_path / "made")
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_told(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(DiskFull, match="no room for 0"):
        imported(file, tmp_path / "made")
    assert sorted(tmp_path.iterdir()) == []


def test_the_command_reports_success_or_the_mistake(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    command = ["models", "import", str(file), "--to", str(folder)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert f"far-mesh up --model {folder}" in done.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "choose another folder" in again.output
    other = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "other"), "--dtype", "int4"])
    assert other.exit_code == 1
    assert "--dtype is one of float16, bfloat16, float32" in other.output
