"""The serving process: `main` is called by `isolation.start`, with the arguments FD PARENT_PID LISTENING_FD.

It loads one model, answers HTTP on a socket that the agent listens on, and tells the agent how it goes.
While one such process takes over from another, both accept on the same socket, so that no request is lost.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
from pathlib import Path
from time import sleep

import msgspec

from edgepress_agent import runtimes
from edgepress_agent.measure import process, tensors
from edgepress_agent.measure.child import trouble
from edgepress_agent.measure.pipe import Question, Ready, Serve, pack, receive
from edgepress_agent.measure.steps import Steps
from edgepress_agent.serving.handler import Handler
from edgepress_agent.serving.service import Counts, Service

_REPORT_EVERY_S = 0.1
_CONNECTIONS = 128
"""Each has a thread, for whose address space there must be room; as many more wait to be accepted."""


def main() -> None:
    """Load, serve until told to drain, drain."""
    questions = msgspec.msgpack.Decoder(Question)
    pipe = socket.socket(fileno=int(sys.argv[1]))
    listening = socket.socket(fileno=int(sys.argv[3]))
    first = receive(pipe)
    if first is None:
        return
    asked = questions.decode(first)
    assert isinstance(asked, Serve), "the first message is Serve"
    try:
        service = Service(asked.manifest, load(asked), Handler)
    except BaseException as error:  # noqa: BLE001 - a runtime raises anything; all of it is an answer
        pipe.sendall(pack(trouble(error)))
        return
    pipe.sendall(pack(Ready()))
    reporting = threading.Thread(target=report, args=(service.counts, pipe), daemon=True)
    reporting.start()
    accept(service, listening, pipe)
    service.drain()
    service.counts.finish()
    reporting.join()


def load(asked: Serve) -> tensors.Bound:
    """Load the model and run it once, so that the first request does not pay for it."""
    _, module = runtimes.get(asked.manifest.format)
    path = Path(asked.model)
    module.prepare()
    process.limit_address_space(process.allowance_bytes(path, _CONNECTIONS))
    bound = tensors.bind(module.load(path, 1), asked.manifest, 1)
    bound.run(tensors.random_inputs(bound))
    Steps(bound).restart()
    return bound


def accept(service: Service, listening: socket.socket, pipe: socket.socket) -> None:
    """Accept until the agent says anything, or ends."""
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if pipe in ready:
                return
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                continue  # the other process was quicker
            connection.setblocking(True)
            service.connect(connection)


def report(counts: Counts, pipe: socket.socket) -> None:
    """Tell the agent what changed, at once and then at most ten times a second."""
    while counts.changed.wait():
        last = counts.over
        pipe.sendall(pack(counts.take()))
        if last:
            return
        sleep(_REPORT_EVERY_S)
