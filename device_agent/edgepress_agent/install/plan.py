"""MAIN PATH of `install` and `uninstall`: the steps, in order, from what the root shows and what was asked. Pure.

`carry_out.py` does them. Paths are those inside the root.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepress_agent.install.facts import Facts
from edgepress_agent.install.unit import RAPL_RULE, SERVICE, SYSUSERS, USER, unit

CONFIG = Path("/etc/edgepress/agent.toml")
HOST_KEY = CONFIG.parent / "host.pub"
PASSWORD = CONFIG.parent / "broker-password"
AUTHORITY = CONFIG.parent / "ca.pem"
STATE = Path("/var/lib/edgepress")
UNIT = Path(f"/etc/systemd/system/{SERVICE}.service")
USERS = Path("/etc/sysusers.d/edgepress.conf")
RULE = Path("/etc/udev/rules.d/70-edgepress-rapl.rules")

_HEAD = (
    "# Options of `edgepress-agent run`, each with '_' for '-'. Written by `edgepress-agent install`; yours to edit.\n"
)


@dataclass(frozen=True)
class Folder:
    """A folder that has to be there."""

    path: Path


@dataclass(frozen=True)
class File:
    """A file that has to hold this text; `private` to root and the agent's group."""

    path: Path
    text: str
    private: bool = False


@dataclass(frozen=True)
class Gone:
    """A file or a folder that must not be there."""

    path: Path


@dataclass(frozen=True)
class Command:
    """A program to run; `rooted` ones take the root as an option, `--root=DIR`, where it is not /."""

    words: tuple[str, ...]
    rooted: bool = False


Step = Folder | File | Gone | Command


def install(facts: Facts, config: Mapping[str, str], beside: Sequence[File], *, start: bool) -> list[Step]:
    """Return what makes the service; without `config` the one that is there is kept, and without any nothing starts.

    `beside` are the files that the configuration names: the host's key, and what the broker wants.
    """
    steps: list[Step] = [
        File(USERS, SYSUSERS),
        Command(("systemd-sysusers", USERS.name), rooted=True),
        Folder(CONFIG.parent),
    ]
    steps += beside
    if config:
        steps.append(File(CONFIG, config_text(config), private=True))
    steps.append(File(UNIT, unit(facts, CONFIG)))
    if facts.rapl:
        steps.append(File(RULE, RAPL_RULE))
    if facts.live:
        steps.append(Command(("systemctl", "daemon-reload")))
        if facts.rapl:
            steps.append(Command(("udevadm", "control", "--reload")))
            steps.append(Command(("udevadm", "trigger", "--subsystem-match=powercap")))
    steps.append(Command(("systemctl", "enable", f"{SERVICE}.service"), rooted=True))
    if facts.live and start and (config or facts.configured):
        steps.append(Command(("systemctl", "restart", f"{SERVICE}.service")))
    return steps


def uninstall(facts: Facts, *, purge: bool) -> list[Step]:
    """Return what takes the service away; `purge` takes its configuration and its models too."""
    steps: list[Step] = []
    if facts.installed:
        steps += [Command(("systemctl", "stop", f"{SERVICE}.service"))] if facts.live else []
        steps.append(Command(("systemctl", "disable", f"{SERVICE}.service"), rooted=True))
    steps += [Gone(UNIT), Gone(RULE), Gone(USERS)]
    if facts.live:
        steps.append(Command(("systemctl", "daemon-reload")))
    if purge:
        steps += [Gone(CONFIG.parent), Gone(STATE)]
    return steps


def config_for(broker: str, device_id: str, more: Mapping[str, str]) -> dict[str, str]:
    """Return the configuration of a service: its folders are those that the unit gives it."""
    return {
        "broker": broker,
        "id": device_id,
        "state_dir": str(STATE),
        "trust": str(HOST_KEY),
        "serve": "unix:/run/edgepress/serve.sock",
        **more,
    }


def config_text(config: Mapping[str, str]) -> str:
    """Write it as TOML.

    >>> print(config_text({"id": "pi-1"}), end="")  # doctest: +ELLIPSIS
    # Options of ...
    id = "pi-1"
    """
    # A string of JSON is one of TOML, as long as nothing is written as a pair of surrogates.
    return _HEAD + "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items())


def left_behind(*, purge: bool) -> str:
    """Say what an uninstallation leaves."""
    stays = f"the user {USER} stays (userdel {USER})"
    return stays if purge else f"{CONFIG.parent} and {STATE} stay (uninstall --purge removes them); {stays}"
