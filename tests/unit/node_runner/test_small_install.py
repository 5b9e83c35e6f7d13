"""`pip install far-node[serve]` is small: it brings no web framework, database or chain client."""

import pkgutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest

import node_runner
from node_runner import command, installation
from node_runner.cli import app
from node_runner.service import exit_codes
from tests.support.node.requirements import closure

NOT_FOR_NODES = {
    "alembic",
    "arq",
    "asyncpg",
    "boto3",
    "fastapi",
    "pydantic-settings",
    "sqlalchemy",
    "starlette",
    "uvicorn",
    "web3",
}
MODULES = ["alembic", "arq", "asyncpg", "boto3", "fastapi", "pydantic_settings"]
MODULES += ["sqlalchemy", "starlette", "uvicorn", "web3"]
MODULES += ["api", "cli", "discovery", "market", "stack", "workers"]


def test_what_it_requires_is_small() -> None:
    needed = closure("far-node", frozenset({"serve"}))
    assert {"torch", "transformers", "typer"} <= needed
    assert needed & (NOT_FOR_NODES | {"far-mesh"}) == set()
    assert "fastapi" in closure("far-mesh", frozenset({"api"}))


@pytest.mark.slow
def test_every_module_of_a_node_runs_without_the_rest() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(node_runner.__path__, "node_runner.")
        if not module.name.endswith("__main__")
    ]
    assert "node_runner.cli.start" in names
    code = (
        "import importlib, sys\n"
        f"for name in {MODULES!r}:\n"
        "    sys.modules[name] = None\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)


def test_the_command_is_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = [
        entry
        for entry in distribution("far-node").entry_points
        if entry.group == "console_scripts" and entry.name == "far-node"
    ]
    monkeypatch.setattr("sys.argv", ["far-node"])
    with pytest.raises(SystemExit) as ended:
        found.load()()
    assert ended.value.code == exit_codes.USAGE_ERROR
    assert app.info.no_args_is_help
    assert "Serve layers of a model" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("absent", "needs"),
    [(["torch"], "torch"), (["httpx", "torch", "typer"], "httpx and 2 more packages")],
)
def test_a_forgotten_extra_is_named(
    absent: list[str],
    needs: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def distribution(name: str) -> None:
        if name in absent:
            raise PackageNotFoundError

    monkeypatch.setattr(installation, "distribution", distribution)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == exit_codes.CONFIG_ERROR
    assert capsys.readouterr().err == (
        f"far-node: a node needs {needs}. Run: pip install 'far-node[serve]'\n"
    )
