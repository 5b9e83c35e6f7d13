"""The systemd unit that keeps `far-node start` running."""

import getpass
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node_runner.machine import config_file
from node_runner.service import exit_codes

UNIT_NAME = "far-node.service"

STOP_TIMEOUT = 120
"""Seconds that systemd gives the nodes to drain."""

TEMPLATE = """\
# Written by `far-node service install`; that, or an edit, changes it.
[Unit]
Description=Far Mesh node: serves layers of a model
Documentation=https://github.com/farlabs/far-mesh
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
{user}Restart=on-failure
RestartPreventExitStatus={for_good}
RestartSec=30
TimeoutStopSec={stop_limit}
KillMode=mixed
EnvironmentFile=-{environment}

# What a node needs is its cache, its settings, the GPU and one outbound connection.
NoNewPrivileges=yes
{hardening}LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
UMask=0077

[Install]
WantedBy={target}
"""

SYSTEM_HARDENING = """\
ProtectSystem=strict
ReadWritePaths={writable}
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
CapabilityBoundingSet=
"""
"""What a user's own systemd cannot set up. Devices stay visible: the GPU is one, and
MemoryDenyWriteExecute stays off, since kernels are compiled at start."""


class ServiceError(Exception):
    """systemd cannot be used like this; the message says why."""


@dataclass(frozen=True, slots=True)
class Service:
    """A systemd service: where its unit lies, and for whom it runs. ``system``: at boot, also if
    nobody logs in."""

    system: bool
    user: str
    home: Path

    @property
    def path(self) -> Path:
        if self.system:
            return Path("/etc/systemd/system") / UNIT_NAME
        return self.home / ".config" / "systemd" / "user" / UNIT_NAME

    @property
    def environment(self) -> Path:
        """Variables of the service, such as FAR_NODE_PASSWORD; need not be there."""
        return self.home / ".config" / "far-node" / "environment"

    @property
    def settings(self) -> Path:
        """The settings' file that its nodes read, unless an option names another."""
        return self.home / ".config" / "far-node" / config_file.FILE_NAME

    @property
    def folders(self) -> list[Path]:
        """Folders that any node writes to."""
        return [self.home / each for each in (".cache", ".config/far-node", ".local/state")]

    def variables(self) -> dict[str, str]:
        """The variables that the service has from :attr:`environment`; none if that is not there.

        Raises:
            ServiceError: it cannot be read.
        """
        try:
            lines = self.environment.read_text().splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ServiceError(f"Cannot read {self.environment}: {error.strerror}.") from None
        pairs = (line.partition("=") for line in lines if not line.lstrip().startswith(("#", ";")))
        return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """
        Raises:
            ServiceError: there is no systemd here.
        """
        if shutil.which("systemctl") is None:
            raise ServiceError(
                "There is no systemd here (systemctl). Use --dry-run to see the unit."
            )
        scope = [] if self.system else ["--user"]
        return subprocess.run(
            ["systemctl", *scope, *arguments], capture_output=True, text=True, check=False
        )


def service_of(*, system: bool, user: str | None) -> Service:
    """The service of this user, or of another, if root asks for a system service.

    Raises:
        ServiceError: there is no such user.
    """
    name = user or os.environ.get("SUDO_USER") or getpass.getuser()
    home = Path.home() if name == getpass.getuser() else Path(os.path.expanduser(f"~{name}"))
    if not home.is_absolute():
        raise ServiceError(f"There is no user {name!r} here.")
    return Service(system=system, user=name, home=home)


def render(
    service: Service,
    options: Sequence[str],
    *,
    settings: Path | None = None,
    folders: Sequence[Path] = (),
) -> str:
    """The text of the systemd unit.

    Args:
        options: Of `far-node start`.
        settings: The file that `--config` named, if it did.
        folders: What these nodes write to, beside what all do.

    Raises:
        ServiceError: an option that a unit cannot carry.
    """
    file = [] if settings is None else ["--config", str(settings.absolute())]
    command = [sys.executable, "-m", "node_runner.cli", *file, "start", *options]
    for each in folders:
        if not each.is_absolute():
            raise ServiceError(f"A service needs absolute paths; got {each}.")
    writable = " ".join(_quoted(f"-{each}") for each in (*service.folders, *folders))
    return TEMPLATE.format(
        command=" ".join(map(_argument, command)),
        user=f"User={service.user}\n" if service.system else "",
        hardening=SYSTEM_HARDENING.format(writable=writable) if service.system else "",
        for_good=f"{exit_codes.USAGE_ERROR} {exit_codes.CONFIG_ERROR}",
        stop_limit=STOP_TIMEOUT,
        environment=service.environment,
        target="multi-user.target" if service.system else "default.target",
    )


def install(service: Service, text: str, *, folders: Sequence[Path] = ()) -> None:
    """Write the unit, and have systemd start it now and at each boot.

    Args:
        folders: What the nodes write to, beside what all do.

    Raises:
        ServiceError: not allowed, or systemd refuses.
    """
    try:
        if service.system:
            _make_folders(service.user, [*service.folders, *folders])
        service.path.parent.mkdir(parents=True, exist_ok=True)
        service.path.write_text(text)
    except PermissionError:
        raise ServiceError(f"Only root may write {service.path}: use sudo, or --user.") from None
    for arguments in (("daemon-reload",), ("enable", "--now", UNIT_NAME)):
        _check(service.systemctl(*arguments))


def uninstall(service: Service) -> bool:
    """Stop the nodes and remove the unit. Whether there was one.

    Raises:
        ServiceError: not allowed, or systemd refuses.
    """
    if not service.path.exists():
        return False
    _check(service.systemctl("disable", "--now", UNIT_NAME))
    try:
        service.path.unlink()
    except PermissionError:
        raise ServiceError(f"Only root may remove {service.path}: use sudo.") from None
    _check(service.systemctl("daemon-reload"))
    return True


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise ServiceError(f"{' '.join(done.args)}: {done.stderr.strip() or done.stdout.strip()}")


def _make_folders(user: str, folders: Sequence[Path]) -> None:
    """Make what is missing, as the user whose it is to be: the unit lets his nodes write into these
    folders, and not make them."""
    account = pwd.getpwnam(user)
    done = subprocess.run(
        ["mkdir", "-p", "--", *map(str, folders)],
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=os.getgrouplist(user, account.pw_gid),
        umask=0o077,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServiceError(f"{user} needs these folders: {done.stderr.strip()}")


def _argument(word: str) -> str:
    """A word of a command, where systemd puts variables in."""
    return _quoted(word.replace("$", "$$"))


def _quoted(word: str) -> str:
    """A word as systemd reads it: quoted, with specifiers escaped."""
    if any(ord(letter) < 32 for letter in word):
        raise ServiceError(f"A unit's option is one line; got {word!r}.")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if set(escaped) & set(" '\"\\;") or not escaped else escaped
