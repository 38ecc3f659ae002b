"""MAIN PATH of the agent: five tasks around one state folder, until a signal ends them.

`link` keeps the connection, `converge` makes the device what the host wants, `measure` runs trials, `telemetry` speaks
at intervals, `watchdog` tells systemd that the loop turns. A bug in any of them ends the process; its supervisor starts
it again, and it goes on from the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from functools import partial
from typing import Any

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Device

from edgepress_agent._compat import TaskGroup, timeout
from edgepress_agent.board import probe, telemetry
from edgepress_agent.converge import Converger
from edgepress_agent.log import logger
from edgepress_agent.notify import Supervisor, supervisor
from edgepress_agent.serving.serve import Server
from edgepress_agent.settings import Settings, lock_state_dir
from edgepress_agent.state.disk import open_disk
from edgepress_agent.state.files import Files

STOP_S = 1.5
"""What the clean stop may take, goodbye included; a supervisor asks for two seconds at most."""


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        UsageError: the state folder cannot be used.
        Unavailable: a connect timeout was set, and no connection came about; or the serving address is taken.
    """
    systemd = supervisor(os.environ)
    lock = lock_state_dir(settings.state_dir)
    try:
        await _run_locked(settings, systemd)
    finally:
        os.close(lock)


async def _run_locked(settings: Settings, systemd: Supervisor) -> None:
    disk = open_disk(settings, Files())
    server = Server(settings.serve, disk.work) if settings.serve else None
    converger = Converger(settings, disk, server, partial(_inventory, settings))
    converger.link.on_status = systemd.status
    stopping = _on_signal()
    asyncio.get_running_loop().set_exception_handler(_on_loop_error)
    ended: list[Unavailable] = []
    if server is not None:
        await server.start()
    try:
        async with TaskGroup() as group:
            work = [
                group.create_task(_link(converger, ended, stopping), name="link"),
                group.create_task(converger.run(), name="converge"),
                group.create_task(converger.bench.run(), name="measure"),
                group.create_task(_telemetry(settings, converger, server), name="telemetry"),
                group.create_task(systemd.watch(), name="watchdog"),
            ]
            systemd.ready()
            await stopping.wait()
            systemd.stopping()
            # Whatever hangs now, a name look-up or a broker that went silent, must not hold the machine's shutdown up.
            asyncio.get_running_loop().call_later(STOP_S, _leave)
            converger.stop_on_purpose()
            await converger.link.say_goodbye()
            for task in work:
                task.cancel()
    finally:
        await converger.close()
        if server is not None:
            await server.stop()
    if ended:
        raise ended[0]
    logger.info("stopped")


def _inventory(settings: Settings) -> Device:
    return probe.inventory(settings.root, device_id=settings.device_id, state_dir=settings.state_dir)


async def _link(converger: Converger, ended: list[Unavailable], stopping: asyncio.Event) -> None:
    try:
        await converger.link.run()
    except Unavailable as error:
        ended.append(error)
        stopping.set()


async def _telemetry(settings: Settings, converger: Converger, server: Server | None) -> None:
    while True:
        stats = server.stats() if server is not None else None
        reading = await asyncio.to_thread(telemetry.read, settings.root, stats, state_dir=settings.state_dir)
        converger.say_telemetry(reading)
        converger.config_changed.clear()
        with contextlib.suppress(TimeoutError):
            async with timeout(converger.config.telemetry_s):
                await converger.config_changed.wait()


def _on_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # aiomqtt may ask to write to a socket that a killed broker has just closed; the link notices the loss itself.
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        logger.debug("%s", context.get("message"))
    else:
        loop.default_exception_handler(context)


def _leave() -> None:
    logger.warning("not stopped within %.1f s: leaving all the same", STOP_S)
    os._exit(0)
