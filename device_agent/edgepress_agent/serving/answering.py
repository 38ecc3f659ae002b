"""The serving process: `main` is called by `isolation.start`, with FD PARENT_PID LISTENING_FD GIVE_FD TAKE_FD.

It loads one model, answers HTTP on a socket that the agent listens on, and tells the agent how it goes. While one such
process takes over from another, both accept on the same socket, and the one that goes sends its open connections to
the other by a socket pair of the agent's: no request is lost, and no client has to connect anew.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
from pathlib import Path
from time import sleep

import msgspec

from edgepress_agent.measure import process, tensors
from edgepress_agent.measure.child import begin, trouble
from edgepress_agent.measure.pipe import Question, Ready, Serve, pack, receive
from edgepress_agent.measure.steps import Steps
from edgepress_agent.serving.connection import answer, refuse
from edgepress_agent.serving.service import MAX_CONNECTIONS, Counts, Service
from edgepress_agent.serving.v2 import Endpoint

_REPORT_EVERY_S = 0.25
_SIGNS_OF_LIFE = 4
"""How many of them are given while one answer may be computed."""


def main() -> None:
    """Load, serve until told to drain, drain."""
    questions = msgspec.msgpack.Decoder(Question)
    pipe = socket.socket(fileno=int(sys.argv[1]))
    listening, give, take = (socket.socket(fileno=int(number)) for number in sys.argv[3:6])
    first = receive(pipe)
    if first is None:
        return
    asked = questions.decode(first)
    assert isinstance(asked, Serve), "the first message is Serve"
    try:
        service = Service(Endpoint(load(asked), asked.manifest), give, answer)
    except BaseException as error:  # noqa: BLE001 - a runtime raises anything; all of it is an answer
        pipe.sendall(pack(trouble(error)))
        return
    pipe.sendall(pack(Ready()))
    reporting = threading.Thread(
        target=report, args=(service.counts, pipe, asked.answer_s / _SIGNS_OF_LIFE), daemon=True
    )
    reporting.start()
    accept(service, listening, take, pipe)
    service.drain(asked.answer_s)
    service.counts.finish()
    reporting.join()


def load(asked: Serve) -> tensors.Bound:
    """Load the model and run it once, so that the first request does not pay for it."""
    path = Path(asked.model)
    _, module = begin(asked.manifest.format, asked.runtime, path)
    # Each connection has a thread, for whose address space there must be room.
    process.limit_address_space(process.allowance_bytes(path, MAX_CONNECTIONS))
    bound = tensors.bind(module.load(path, 1), asked.manifest, 1)
    bound.run(tensors.random_inputs(bound))
    Steps(bound).restart()
    return bound


def accept(service: Service, listening: socket.socket, take: socket.socket, pipe: socket.socket) -> None:
    """Accept, from clients and from the process before, until the agent says anything or ends."""
    with selectors.DefaultSelector() as selector:
        for each in (listening, take, pipe):
            selector.register(each, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if pipe in ready:
                return
            try:
                connection = listening.accept()[0] if listening in ready else taken(take)
            except BlockingIOError:
                continue  # the other process was quicker
            if not service.connect(connection):
                refuse(connection, f"{MAX_CONNECTIONS} connections are open already: close some, or keep one open")


def taken(take: socket.socket) -> socket.socket:
    """Take over a connection that the process before this one has handed over."""
    _, (descriptor,), _, _ = socket.recv_fds(take, 16, 1)
    return socket.socket(fileno=descriptor)


def report(counts: Counts, pipe: socket.socket, tell_every_s: float) -> None:
    """Tell the agent what changed, at once and then at most four times a second; and now and then that nothing did."""
    while True:
        counts.changed.wait(tell_every_s)
        # In this order: what comes after the flag is cleared sets it again, and what came before the end is taken.
        counts.changed.clear()
        last = counts.over
        pipe.sendall(pack(counts.take()))
        if last:
            return
        sleep(_REPORT_EVERY_S)
