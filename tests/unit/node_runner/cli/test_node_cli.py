"""`far-node` without a platform: what it takes from where, and what it says of mistakes."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account
from typer.testing import CliRunner

from mesh.node_api import RegistrationReply
from node_runner import server
from node_runner.cli import app, login
from node_runner.dht import platform_lookup
from node_runner.machine import config_file, directories, login_file
from node_runner.node import lifecycle, startup
from node_runner.node.options import NodeOptions
from node_runner.service import device_processes
from node_runner.service.control_socket import ControlSocket
from node_runner.service.exit_codes import CONFIG_ERROR, TEMPORARY_FAILURE
from node_runner.weights import http_source as weights
from tests.support.gateway.platform_server import REGISTERED

WALLET = "0x" + "ab" * 20
LOGIN = login_file.MachineLogin(
    discovery="https://mesh.example",
    wallet_address=WALLET,
    machine="attic",
    machine_id="machine_1",
    token="a token",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's settings but the test's."""
    for name in [name for name in os.environ if name.startswith("FAR_NODE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[NodeOptions]:
    """What nodes would have been started with."""
    found: list[NodeOptions] = []
    monkeypatch.setattr(lifecycle, "serve", found.append)
    return found


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[device_processes.DeviceProcess]:
    """What a parent would have started; all of them refuse."""
    found: list[device_processes.DeviceProcess] = []

    def begin(several: Sequence[device_processes.DeviceProcess], **_: object) -> int:
        found.extend(several)
        return CONFIG_ERROR

    monkeypatch.setattr(device_processes, "run", begin)
    return found


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    text = " ".join((result.stdout + result.stderr).split())
    assert result.exit_code == status, text
    return text


def keyfile(folder: Path, password: str = "") -> tuple[Path, str]:
    account = Account.create()
    file = folder / "wallet.json"
    file.write_text(json.dumps(account.encrypt(password, kdf="pbkdf2", iterations=1)))
    return file, account.address


def test_after_a_login_a_model_is_enough(started: list[NodeOptions]) -> None:
    login_file.save(LOGIN)
    run("start", "--model", "m")
    (options,) = started
    assert (options.model, options.wallet, options.discovery) == ("m", WALLET, LOGIN.discovery)
    assert options.credential == "a token"
    assert "a token" not in repr(options)


def test_a_flag_outweighs_the_environment_and_that_the_file(
    started: list[NodeOptions], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login_file.save(LOGIN)
    settings = home / ".config" / "far-node" / "config.toml"
    settings.write_text('model = "file"\nkv-gb = 2.5\nthreads = 3\nedge = true\ndevice = "cpu"\n')
    monkeypatch.setenv("FAR_NODE_MODEL", "environment")
    monkeypatch.setenv("FAR_NODE_THREADS", "4")
    run("start", "--model", "flag")
    run("start")
    monkeypatch.delenv("FAR_NODE_MODEL")
    run("start", "--no-edge")
    assert [options.model for options in started] == ["flag", "environment", "file"]
    assert [options.threads for options in started] == [4, 4, 4]
    assert [options.kv_gb for options in started] == [2.5] * 3
    assert [options.edge for options in started] == [True, True, False]
    assert {options.device for options in started} == {"cpu"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("modle = 'm'", "there is no setting 'modle'"),
        ("[start]\nmodel = 'm'", "there is no setting 'start'"),
        ("model =", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_used(home: Path, text: str, complaint: str) -> None:
    file = home / "mine.toml"
    file.write_text(text)
    assert complaint in run("--config", str(file), "start", status=CONFIG_ERROR)


def test_settings_are_changed_one_by_one_and_comments_stay(home: Path) -> None:
    file = home / ".config" / "far-node" / "config.toml"
    run("config", "set", "model", "far/pydoc-llama")
    file.write_text("# mine\n" + file.read_text())
    run("config", "set", "max-sessions", "4")
    run("config", "set", "gpu", "0", "1")
    run("config", "set", "max_sessions", "5")
    assert file.read_text().splitlines() == [
        "# mine",
        'model = "far/pydoc-llama"',
        "gpu = [0, 1]",
        "max_sessions = 5",
    ]
    run("config", "unset", "gpu")
    shown = run("config", "show")
    assert "max_sessions = 5" in shown
    assert "gpu" not in shown
    assert "no setting 'wall'" in run("config", "set", "wall", "0x", status=CONFIG_ERROR)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_login_is_for_its_owners_eyes_only(home: Path) -> None:
    login_file.save(LOGIN)
    file = directories.config() / login_file.FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert login_file.load() == LOGIN
    assert [each.name for each in file.parent.iterdir()] == [login_file.FILE_NAME]


@pytest.mark.parametrize(
    ("status", "code", "forgotten"),
    [
        (401, "machine_revoked", True),
        (404, "machine_not_found", True),
        (404, None, False),
        (429, "rate_limited", False),
        (500, "internal_error", False),
        (503, "unavailable", False),
    ],
)
def test_a_token_is_forgotten_once_it_is_not_valid(
    home: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str | None, forgotten: bool
) -> None:
    login_file.save(LOGIN)
    document = {"detail": "What it says."} | ({"code": code} if code else {})
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=document))
    monkeypatch.setattr(
        login, "client", lambda url: httpx.Client(base_url=url, transport=transport)
    )
    said = run("logout", status=0 if forgotten else CONFIG_ERROR)
    assert ("knew of no such token" in said) is forgotten
    assert ("still valid" in said) is not forgotten
    assert login_file.load() == (None if forgotten else LOGIN)


def test_what_is_said_without_a_login(home: Path) -> None:
    assert "far-node login --discovery URL" in run("start", "--model", "m", status=CONFIG_ERROR)
    said = run("start", "--model", "m", "--discovery", "https://mesh.example", status=CONFIG_ERROR)
    assert "not logged in" in said
    assert "not logged in" in run("logout")
    assert "Which platform?" in run("login", status=CONFIG_ERROR)
    (directories.make_private(directories.config()) / login_file.FILE_NAME).write_text("{}")
    assert "Log in again" in run("start", "--model", "m", status=CONFIG_ERROR)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--wallet", "0x" + "cd" * 20], "was let in by 0xabab"),
        (["--discovery", "https://other.example"], "logged in at https://mesh.example, not at"),
        (["--span", "3"], "--span is START:END"),
        (["--schedule", "at night"], "A schedule is like 22:00-08:00"),
        (["--max-sessions", "0"], "at least 1"),
        (["--min-price", "much"], "an amount of FAR"),
        (["--min-price", "-1"], "an amount of FAR"),
        (["--gpu", "0", "--device", "cuda:0"], "A GPU holds one node"),
        (["--keyfile", "/nowhere.json"], "Cannot read the keystore /nowhere.json"),
        (["--auto-update"], "runs from a checkout"),
        (["--device", "tpu"], "--device is cpu, cuda or cuda:N"),
        (["--device", "cuda:7"], "torch finds no GPU here"),
        (["--dtype", "float8"], "--dtype is one of"),
        (["--device", "cpu", "--path", "/nowhere"], "There is no model folder /nowhere"),
    ],
)
def test_mistakes_are_told_apart(arguments: list[str], complaint: str) -> None:
    login_file.save(LOGIN)
    assert complaint in run("start", "--model", "m", *arguments, status=CONFIG_ERROR)


def unreachable(monkeypatch: pytest.MonkeyPatch, what: str) -> list[str]:
    """Options of a node that finds this one silent."""
    match what:
        case "weights":
            monkeypatch.setattr(weights, "RETRY_POLICY", weights.RetryPolicy(attempts=1))
            return ["--path", "http://127.0.0.1:9/model"]
        case "redis":  # is opened once the platform has registered the node
            registered = RegistrationReply(**REGISTERED)
            monkeypatch.setattr(
                lifecycle,
                "serve",
                lambda given: startup.open_transport(given.redis, "", registered, int),
            )
            return ["--redis", "redis://127.0.0.1:9"]
        case _:
            monkeypatch.setattr(platform_lookup, "find_urls", lambda _: [])
            return ["--dht-peers", "/ip4/127.0.0.1/tcp/9/p2p/Qm", "--operator-key", "ab" * 32]


@pytest.mark.parametrize("what", ["weights", "redis", "platform"])
def test_what_does_not_answer_is_no_mistake(
    what: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = keyfile(home)
    where = [] if what == "platform" else ["--discovery", "http://127.0.0.1:9"]
    options = ["--keyfile", str(file), "--device", "cpu", *where, *unreachable(monkeypatch, what)]
    run("start", "--model", "m", *options, status=TEMPORARY_FAILURE)


def test_a_password_is_in_no_childs_command_line(
    children: list[device_processes.DeviceProcess], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login_file.save(LOGIN)
    monkeypatch.setenv("FAR_NODE_REDIS", "redis://:hunter2@localhost")
    settings = home / ".config" / "far-node" / "config.toml"
    settings.write_text('path = "https://me:hunter3@files.example/"\nmetrics-port = 9101\n')
    run("start", "--model", "m", "--device", "cpu", "--device", "cpu", status=CONFIG_ERROR)
    assert [child.environment for child in children] == 2 * [
        {
            "FAR_NODE_REDIS": "redis://:hunter2@localhost",
            "FAR_NODE_PATH": "https://me:hunter3@files.example/",
        }
    ]
    commands = [" ".join(child.command) for child in children]
    assert "--metrics-port 9101" in commands[0]
    assert "--metrics-port 9102" in commands[1]
    assert "hunter" not in f"{commands} {children}"


def test_the_wallet_of_a_key_file_is_the_one_that_is_paid(
    started: list[NodeOptions], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, owner = keyfile(home, "secret")
    arguments = ["start", "--model", "m", "--discovery", "https://x", "--keyfile", str(file)]
    assert "Is FAR_NODE_PASSWORD its password?" in run(*arguments, status=CONFIG_ERROR)
    monkeypatch.setenv("FAR_NODE_PASSWORD", "secret")
    assert f"belongs to {owner}, not to" in run(*arguments, "--wallet", WALLET, status=CONFIG_ERROR)
    run(*arguments)
    assert started[0].wallet == owner
    assert isinstance(started[0].credential, bytes)


def test_the_specifications_flags(
    started: list[NodeOptions], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", "--model", "m"])
    login_file.save(LOGIN)
    flags = ["--model", "m", "--wallet", WALLET, "--discovery-url", LOGIN.discovery]
    with pytest.raises(SystemExit) as ended:
        server.main([*flags, "--public-addr", "192.0.2.1:31330", "--gpu", "1"])
    assert ended.value.code == 0
    assert (started[0].device, started[0].public_addr) == ("cuda:1", "192.0.2.1:31330")
    assert sys.argv[:4] == ["far-node", "start", "--model", "m"]
    for device in (["--device", "cpu"], ["--device=cpu"]):
        with pytest.raises(SystemExit):
            server.main([*flags, "--public-addr", "192.0.2.1:31330", *device])
    assert [options.device for options in started[1:]] == ["cpu", "cpu"]
    with pytest.raises(SystemExit) as refused:
        server.main(["--model", "m"])
    assert refused.value.code == 2


@pytest.fixture
def about() -> dict[str, Any]:
    """What a node that runs here says of itself."""
    return {"kind": "node", "model_id": "m", "device": "cpu", "wallet_address": WALLET}


def test_messages_are_shown_as_they_are(home: Path, about: dict[str, Any]) -> None:
    """Nothing in them is taken for markup."""
    login_file.save(LOGIN)
    url = "http://[fe80::1]:9"  # nothing connects to a link-local address of no link
    start = ["start", "--model", "m"]
    assert f"not at {url}." in run(*start, "--discovery", url, status=CONFIG_ERROR)
    said = run(*start, "--keyfile", "/nowhere[/y].json", status=CONFIG_ERROR)
    assert "Cannot read the keystore /nowhere[/y].json" in said
    assert f"{url} does not answer" in run("doctor", "--quick", "--discovery", url, status=1)
    about |= {"model_id": "m[bold]", "discovery": url}
    with ControlSocket(about, drain=lambda: None):
        said = run("status")
    assert "m[bold]" in said
    assert f"{url} does not answer" in said
    settings = home / "[settings].toml"
    settings.write_text("")
    assert str(settings) in run("--config", str(settings), "config", "show")


def test_nobody_is_asked_for_earnings_where_the_platform_is_not_known(
    about: dict[str, Any],
) -> None:
    with ControlSocket(about | {"discovery": None}, drain=lambda: None):
        assert "starting" in run("status")
        assert json.loads(run("status", "--json"))["wallets"] == []


def test_nothing_runs_here(home: Path) -> None:
    assert "No node of yours runs here" in run("status", status=3)
    assert "No node of yours runs here" in run("drain")


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from node_runner.cli import app\n"
        "for command in ['start', 'login', 'doctor', 'bench', 'status', 'drain', 'service']:\n"
        "    assert CliRunner().invoke(app, [command, '--help']).exit_code == 0, command\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_known_values_keep_their_kind(home: Path) -> None:
    file = home / "some.toml"
    values: dict[str, Any] = {"edge": True, "kv_gb": 0.5, "model": 'a "b" \\ c', "gpu": [0, 1]}
    for name, value in values.items():
        config_file.change(file, name, value)
    known = dict.fromkeys(values, False) | {"gpu": True}
    assert config_file.read(file, known) == values
