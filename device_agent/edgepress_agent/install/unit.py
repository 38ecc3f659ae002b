"""The unit file of the service, for the groups and devices of one board. Pure.

What each line is for: systemd.exec(5), systemd.service(5), systemd.resource-control(5).
"""

from __future__ import annotations

from pathlib import Path

from edgepress_agent.install.facts import Facts

SERVICE = "edgepress-agent"
USER = "edgepress"

_UNIT = """\
# Written by `edgepress-agent install` for the groups and devices of this board: run it again where they change.
[Unit]
Description=edgepress agent: runs, measures and serves models for its host
After=network.target
ConditionPathExists={config}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} run --config {config}
Restart=always
RestartSec=5
WatchdogSec=30
TimeoutStopSec=10
# A model that eats the memory is ended alone; the agent reports it.
OOMPolicy=continue
User={user}
Group={user}
{groups}StateDirectory=edgepress
StateDirectoryMode=0700
RuntimeDirectory=edgepress
RuntimeDirectoryMode=0755
UMask=0027
WorkingDirectory=/var/lib/edgepress
{devices}NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome={home}
PrivateTmp=yes
PrivateIPC=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
# What a child closes itself in with is not in every systemd's group of calls.
SystemCallFilter=@system-service seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallErrorNumber=EPERM
# Not MemoryDenyWriteExecute: runtimes compile kernels. Not ProcSubset=pid: it hides /proc/cpuinfo.

[Install]
WantedBy=multi-user.target
"""

RAPL_RULE = f"""\
# Energy counters are root's alone since CVE-2020-8694; the agent's group may read them. Written by edgepress-agent.
SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", RUN+="/bin/chgrp {USER} %S%p/energy_uj"
SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", RUN+="/bin/chmod 0440 %S%p/energy_uj"
"""

SYSUSERS = f"""\
# Written by `edgepress-agent install`; systemd-sysusers(8) makes the user.
u {USER} - "edgepress agent" /var/lib/edgepress
"""


def unit(facts: Facts, config: Path) -> str:
    """Write the unit: a missing group would keep it from starting, so only those that are there are named."""
    return _UNIT.format(
        config=config,
        program=facts.program,
        user=USER,
        groups=f"SupplementaryGroups={' '.join(facts.groups)}\n" if facts.groups else "",
        devices=_devices(facts.devices),
        home="read-only" if facts.program.startswith(("/home/", "/root/")) else "yes",
    )


def _devices(devices: tuple[str, ...] | None) -> str:
    if devices is None:
        return "# No /dev was to be seen at the installation: the groups alone decide which devices may be opened.\n"
    # ProtectClock and the like add devices of their own, so the policy is named even where the list is empty.
    return "".join(f"DeviceAllow={path} rw\n" for path in devices) + "DevicePolicy=closed\n"
