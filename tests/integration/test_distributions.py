"""The two distributions: built from their source archives, and tried in fresh environments.

Their wheels alone are installed there. What they depend on is lent by the environment that runs the
tests, so that nothing is downloaded.
"""

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import mesh
from node_runner.service.exit_codes import CONFIG_ERROR

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PROJECTS = {"far-node": REPOSITORY / "far-node", "far-mesh": REPOSITORY}
PACKAGES = {
    "far-node": {"mesh", "node_runner"},
    "far-mesh": {"api", "cli", "discovery", "market", "stack", "workers"},
}
NOT_FOR_PROVIDERS = sorted(PACKAGES["far-mesh"])

LIMIT = 120.0
"""Seconds that each command gets."""

IMPORT_THE_NODE = f"""
import importlib, importlib.util, pkgutil, sys
import mesh, node_runner
for package in (mesh, node_runner):
    assert package.__file__.startswith(sys.prefix), package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
for name in {NOT_FOR_PROVIDERS!r}:
    assert importlib.util.find_spec(name) is None, name
"""

IMPORT_THE_OPERATOR = """
import sys
for name in ("torch", "transformers", "hivemind"):
    sys.modules[name] = None
import api.app, workers.worker, cli.app
from market.escrow.artifacts import artifact
assert artifact("InferenceEscrow")["abi"]
assert api.app.__file__.startswith(sys.prefix), api.app.__file__
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A fresh virtual environment, used from an empty folder."""

    folder: Path
    work: Path

    def install(self, wheel: Path) -> None:
        pip("--python", str(self.folder), "install", str(wheel), folder=self.work)

    def lend_dependencies(self) -> None:
        """Let it import what is installed here. Only the folders are lent, without the links in
        them that lead to the checkout."""
        (packages,) = self.folder.glob("lib/python*/site-packages")
        lent = [path for path in sys.path if path.endswith("-packages")]
        (packages / "lent.pth").write_text("\n".join(lent))

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(str(self.folder / "bin" / command), *arguments, folder=self.work)


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=own, check=False, capture_output=True, text=True, timeout=LIMIT
    )


def pip(*arguments: str, folder: Path) -> None:
    """Have pip do something with the given file alone, without a network."""
    command = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*command, *arguments, "--no-index", "--no-deps", folder=folder).check_returncode()


def environment(folder: Path) -> Environment:
    work = folder / "work"
    work.mkdir()
    venv.create(folder / "venv", symlinks=True)
    return Environment(folder / "venv", work)


def build(project: Path, folder: Path) -> Path:
    """A project's wheel, built as from a package index: out of its source archive."""
    command = (sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder))
    run(*command, folder=project).check_returncode()
    (archive,) = folder.glob("*.tar.gz")
    pip("wheel", "--no-build-isolation", str(archive), folder=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution."""
    return {
        name: build(project, tmp_path_factory.mktemp(name)) for name, project in PROJECTS.items()
    }


def contents(wheel: Path) -> set[str]:
    """The files that a wheel installs, without its metadata."""
    with ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path, file: str) -> str:
    with ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(f".dist-info/{file}"))
        return opened.read(name).decode()


def sources(packages: set[str]) -> set[str]:
    """The files of these packages in the checkout, those behind links too."""
    return {
        str((Path(folder) / name).relative_to(REPOSITORY))
        for package in packages
        for folder, _, names in os.walk(REPOSITORY / package, followlinks=True)
        for name in names
        if not folder.endswith("__pycache__")
    }


def test_each_file_is_in_one_distribution(wheels: dict[str, Path]) -> None:
    for name, packages in PACKAGES.items():
        assert contents(wheels[name]) == sources(packages)
    assert contents(wheels["far-node"]) & contents(wheels["far-mesh"]) == set()


def test_data_files_are_installed(wheels: dict[str, Path]) -> None:
    assert {
        "api/web/static/style.css",
        "api/web/templates/base.html",
        "market/escrow/compiled/InferenceEscrow.json",
        "market/migrations/script.py.mako",
    } <= contents(wheels["far-mesh"])


def test_the_versions_belong_together(wheels: dict[str, Path]) -> None:
    told = {name: Parser().parsestr(metadata(each, "METADATA")) for name, each in wheels.items()}
    assert {each["Version"] for each in told.values()} == {mesh.__version__}
    assert f"far-node=={mesh.__version__}" in told["far-mesh"].get_all("Requires-Dist", [])


def test_the_licence_comes_with_both(wheels: dict[str, Path]) -> None:
    licence = (REPOSITORY / "LICENSE").read_text()
    assert {metadata(each, "licenses/LICENSE") for each in wheels.values()} == {licence}


def test_a_providers_install(wheels: dict[str, Path], tmp_path: Path) -> None:
    made = environment(tmp_path)
    made.install(wheels["far-node"])
    forgotten = made.run("far-node", "start", "--model", "M")
    assert forgotten.returncode == CONFIG_ERROR
    assert forgotten.stderr.endswith("Run: pip install 'far-node[serve]'\n")
    assert forgotten.stderr.count("\n") == 1
    made.lend_dependencies()
    shown = made.run("far-node", "--help")
    assert "Serve layers of a model" in shown.stdout, shown.stderr
    imported = made.run("python", "-c", IMPORT_THE_NODE)
    assert imported.returncode == 0, imported.stderr


def test_an_operators_install(wheels: dict[str, Path], tmp_path: Path) -> None:
    made = environment(tmp_path)
    made.install(wheels["far-node"])
    made.install(wheels["far-mesh"])
    made.lend_dependencies()
    shown = made.run("far-mesh", "--help")
    assert "Run the whole mesh on this machine" in shown.stdout, shown.stderr
    imported = made.run("python", "-c", IMPORT_THE_OPERATOR)
    assert imported.returncode == 0, imported.stderr
