"""The agent's end of a child process: start it, ask it, say why it died, leave nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec
from edgepress_protocol.messages import Failed

import edgepress_agent
from edgepress_agent.measure.pipe import (
    LENGTH,
    MAX_BYTES,
    Answer,
    Confine,
    Confined,
    Look,
    Open,
    Question,
    Serve,
    Trouble,
    on_gpu,
    pack,
)

NICE = 2
"""Steps by which a model that is tried gives way to everything else on the board; one that serves gives none."""

_SECRET = re.compile(r"PASS|SECRET|TOKEN|CREDENTIAL|(^|_)KEY", re.IGNORECASE)
_OUTPUT_BYTES = 2000
_LINE_CHARACTERS = 200
_PIECE_BYTES = 64 * 1024
_GRACE_S = 1.0
_NO_MEMORY = ("bad_alloc", "Cannot allocate memory", "out of memory", "MemoryError")
A = TypeVar("A", bound=msgspec.Struct)


class Ended(Exception):  # noqa: N818 - it names what happened to the question
    """The child could not answer: what it was asked ends with this outcome."""

    def __init__(self, outcome: Failed) -> None:
        super().__init__(outcome.detail)
        self.outcome = outcome


class Worker:
    """A confined child process as a context; leaving it kills the child's whole process group.

    Its standard output and error are read as they come and all but the last lines are dropped. It may write to a
    folder of its own below `work_dir`, which goes with it. `guards` says what confines it, once it was asked something.
    `confined` is False only where a benchmark asks what confinement costs.
    """

    def __init__(
        self,
        work_dir: Path,
        module: str = "edgepress_agent.measure.child",
        hand_in: Sequence[int] = (),
        *,
        confined: bool = True,
    ) -> None:
        self._work_dir = work_dir
        self._module = module
        self._hand_in = tuple(hand_in)
        self._confined = confined
        self._was_asked = False
        self.guards = Confined((), ())
        self._answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
        self._output: deque[bytes] = deque()
        self._kept_bytes = 0

    async def __aenter__(self) -> Worker:
        self._work_dir.mkdir(parents=True, exist_ok=True)
        self._scratch = self._work_dir.resolve() / f"child-{os.urandom(6).hex()}"
        self._scratch.mkdir(mode=0o700)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await self._start(theirs.fileno())
        except BaseException:
            ours.close()
            self._scratch.rmdir()
            raise
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._listening = asyncio.create_task(self._keep_last_output(), name="child output")
        return self

    async def _start(self, descriptor: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edgepress_agent.isolation.start"),
            *(self._module, str(descriptor), str(os.getpid()), *map(str, self._hand_in)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Python imports from where it starts: never from a folder that another child could have written to.
            cwd=Path(edgepress_agent.__path__[0]).parent,
            env=_environment(self._scratch),
            pass_fds=[descriptor, *self._hand_in],
            start_new_session=True,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._kill()
        await self._process.wait()
        with contextlib.suppress(ConnectionError):  # a child that was killed leaves its pipe broken
            await self._writer.wait_closed()
        # All that wrote there is dead, so that the end of it comes at once, and the transport closes itself.
        await asyncio.wait({self._listening}, timeout=_GRACE_S)
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def ask(self, question: Question, kind: type[A]) -> A:
        """Ask and return the answer.

        Raises:
            Ended: the child died, or answered with `Trouble`.
        """
        await self.tell(question)
        return await self.next(kind)

    async def tell(self, question: Question) -> None:
        """Say what wants no answer.

        Raises:
            Ended: the child died.
        """
        if not self._was_asked:
            self._was_asked = True
            self.guards = await self._confine(question)
        await self._send(question)

    async def next(self, kind: type[A]) -> A:
        """Return the next message.

        Raises:
            Ended: the child ended, or sent a `Trouble`.
        """
        answer = self._answers.decode(await self._receive())
        if isinstance(answer, Trouble):
            raise Ended(Failed(answer.kind, _bounded(answer.detail)))
        assert isinstance(answer, kind), f"{kind.__name__} was awaited, {type(answer).__name__} came"
        return answer

    async def _confine(self, first: Question) -> Confined:
        """Tell the child what it may keep, before it loads anything: the files that its first question names."""
        plan = plan_for(first, self._scratch) if self._confined else Confine((), str(self._scratch), off=True)
        await self._send(plan)
        return msgspec.msgpack.decode(await self._receive(), type=Confined)

    async def _send(self, message: msgspec.Struct) -> None:
        try:
            self._writer.write(pack(message))
            await self._writer.drain()
        except ConnectionError as error:
            raise Ended(await self._cause_of_death()) from error

    async def _receive(self) -> bytes:
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            return await self._reader.readexactly(min(length, MAX_BYTES))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Ended(await self._cause_of_death()) from error

    async def _cause_of_death(self) -> Failed:
        try:
            code = await asyncio.wait_for(self._process.wait(), _GRACE_S)
            await asyncio.wait({self._listening}, timeout=_GRACE_S)
        except asyncio.TimeoutError:
            return Failed(
                "crash", _bounded("the runtime's process closed its pipe without a word" + self._last_words())
            )
        return cause_of_death(code, self._last_words())

    def _last_words(self) -> str:
        return b"".join(self._output)[-_OUTPUT_BYTES:].decode(errors="replace")

    async def _keep_last_output(self) -> None:
        assert self._process.stdout is not None
        while piece := await self._process.stdout.read(_PIECE_BYTES):
            self._output.append(piece[-_OUTPUT_BYTES:])
            self._kept_bytes += len(self._output[-1])
            while self._kept_bytes - len(self._output[0]) >= _OUTPUT_BYTES:
                self._kept_bytes -= len(self._output.popleft())

    def _kill(self) -> None:
        # Its session is its own, so that this reaches whatever it has started too.
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def plan_for(first: Question, scratch: Path) -> Confine:
    """Decide what a child may keep from the first that it is asked."""
    match first:
        case Open(model=model, golden=golden, evaluation=evaluation, providers=providers):
            files = tuple(path for path in (model, golden, evaluation) if path is not None)
            return Confine(files, str(scratch), NICE, gpu=on_gpu(providers))
        case Look(model=model):
            return Confine((model,), str(scratch), NICE)
        case Serve(model=model):
            return Confine((model,), str(scratch))
        case _:
            raise AssertionError(f"a child is not asked this first: {first}")


def _environment(scratch: Path) -> dict[str, str]:
    """Build the agent's environment without what looks like a secret, and with a home that goes with the child."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return {**kept, "HOME": str(scratch), "TMPDIR": str(scratch)}


def cause_of_death(code: int, last_words: str) -> Failed:
    """Say why a child ended, from its exit status and the last it printed.

    >>> cause_of_death(-11, "").detail
    'the runtime crashed: SIGSEGV'
    """
    said = last_words.strip().splitlines()
    tail = f"; it said: {' | '.join(line[-_LINE_CHARACTERS:] for line in said[-3:])}" if said else ""
    if any(sign in last_words for sign in _NO_MEMORY):
        return Failed("memory", _bounded(f"the model ran out of memory{tail}"))
    if code == -signal.SIGKILL:
        return Failed("memory", _bounded(f"the kernel killed the runtime, as it does for want of memory{tail}"))
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return Failed("crash", _bounded(f"the runtime crashed: {how}{tail}"))


def _bounded(text: str) -> str:
    return text if len(text) <= 4000 else text[:4000] + "…"
