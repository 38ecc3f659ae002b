"""The controller, MAIN PATH: lock the data, start the broker, connect, serve REST and page, until told to stop.

What happens in between is `core`'s: devices' words into the pure `fleet`, and what comes of them to disk and broker.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec
from edgepress_protocol.errors import EdgepressError, UsageError
from edgepress_protocol.signing import PrivateKey

from edgepress_host import durable, keys
from edgepress_host.server import broker
from edgepress_host.server.core import Core
from edgepress_host.server.database import Database
from edgepress_host.server.settings import Settings
from edgepress_host.server.views import Running


def run(settings: Settings, ready: Callable[[str], None]) -> None:
    """Run the controller until SIGTERM or SIGINT; `ready` is given one line once it can be used.

    Raises:
        UsageError: another controller has the data directory, there is no key, or an address cannot be used.
        Unavailable: the broker cannot be reached, or the disk is full.
    """
    with _locked(settings):
        key = keys.load(settings.keys_dir)
        database = Database(settings.data_dir / "controller.sqlite")
        try:
            asyncio.run(_run(settings, key, database, ready))
        except BaseExceptionGroup as group:
            raise _one_of(group) from group
        finally:
            database.close()


async def _run(settings: Settings, key: PrivateKey, database: Database, ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        if settings.broker_url:
            endpoint = broker.parse_url(settings.broker_url)
        else:
            endpoint = broker.embedded_endpoint(settings.bind, settings.data_dir, settings.broker_port)
            await stack.enter_async_context(broker.embedded(endpoint))
        from edgepress_host.server.api import create_app, serve  # takes a second: what cannot be is said before

        core = Core(settings, key, database, endpoint)
        app = create_app(core)
        listening = stack.enter_context(_listen(settings.port))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(core.link.run(), name="link"),
                tasks.create_task(core.watch_rollouts(), name="rollouts"),
                tasks.create_task(core.failed(), name="failed"),
            ]
            await core.link.connected.wait()
            running.append(tasks.create_task(serve(app, listening), name="rest"))
            with _announced(settings, url):
                ready(_ready_line(settings, endpoint, url))
                await stop.wait()
            core.stopping.set()
            await _end(running)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks until they are done: a single cancellation can be lost in `asyncio.wait_for` of Python 3.11."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen on 127.0.0.1:{port} ({error}); choose another --port, or 0 for a free one"
        ) from error


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Hold the data directory: one writer."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(settings.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UsageError(f"cannot use the data directory {settings.data_dir}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"a controller runs on {settings.data_dir} already: {_who(settings.running_file)}"
            ) from error
        settings.running_file.unlink(missing_ok=True)  # of a controller that was killed
        yield
    finally:
        os.close(descriptor)


def _who(running_file: Path) -> str:
    try:
        running = msgspec.json.decode(running_file.read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return "it is still starting"
    return f"pid {running.pid}, {running.url}"


@contextmanager
def _announced(settings: Settings, url: str) -> Iterator[None]:
    running = Running(url, str(settings.token_file), os.getpid())
    durable.write(settings.running_file, msgspec.json.encode(running), mode=0o600)
    try:
        yield
    finally:
        settings.running_file.unlink(missing_ok=True)


def _ready_line(settings: Settings, endpoint: broker.Endpoint, url: str) -> str:
    login = f" (password in {endpoint.password_file})" if endpoint.password_file else ""
    public = settings.keys_dir / keys.PUBLIC_NAME
    return (
        f"edgepress {version('edgepress')} ready: fleet {settings.fleet}, page and REST {url},"
        f" broker {endpoint.url}{login}, devices trust {public}"
    )


def _one_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Pick the error of ours out of a group; a bug, which any other is, comes first."""
    leaves = [_one_of(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return min(leaves, key=lambda error: isinstance(error, EdgepressError))
