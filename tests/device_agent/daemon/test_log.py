"""The agent's log: one line for an event, priorities for the journal, and never a password."""

import logging
import os
import re
import signal
import subprocess
import sys

import pytest
from edgepress_agent.log import configure, logger
from edgepress_protocol.signing import PrivateKey

SECRET = "hunter2-Tr0ub4dor"


def run_until(options, line, **environment):
    """Run an agent at its most talkative until it has said `line`; return all that it said."""
    command = [sys.executable, "-m", "edgepress_agent", *map(str, options)]
    said = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        for text in process.stderr:
            said.append(text)
            if line in text:
                process.send_signal(signal.SIGTERM)
        process.wait(20)
    return "".join(said)


@pytest.fixture
def options(tmp_path):
    (tmp_path / "host.pub").write_text(PrivateKey.generate("host").public.to_text())
    known = ("--id", "pi", "--state-dir", tmp_path / "state", "--trust", tmp_path / "host.pub", "--serve", "off")
    return ("run", *known, "--log-level", "debug")


def test_a_password_never_shows_wherever_it_comes_from_and_whatever_the_broker_says(options, guarded, tmp_path):
    good = guarded(f'[v5.1.connections.auth]\npi = "{SECRET}"\n').port
    other = guarded('[v5.1.connections.auth]\npi = "another"\n').port
    (tmp_path / "password").write_text(SECRET)
    (tmp_path / "agent.toml").write_text(f'broker = "mqtt://pi:{SECRET}@127.0.0.1:{good}"\n')
    by_url = (*options, "--broker", f"mqtt://pi:{SECRET}@127.0.0.1:{good}")
    by_file = (*options, "--username", "pi", "--password-file", tmp_path / "password")
    heard = [
        run_until(by_url, "connected to"),
        run_until((*options, "--config", tmp_path / "agent.toml"), "connected to"),
        run_until((*by_file, "--broker", f"mqtt://127.0.0.1:{good}"), "connected to"),
        run_until((*by_file, "--broker", f"mqtt://127.0.0.1:{other}"), "trying again"),
        run_until((*options, "--broker", f"mqtt://pi:{SECRET}@[nonsense"), "error: "),
        run_until(
            (*options, "--username", "pi", "--broker", f"mqtt://127.0.0.1:{other}"),
            "trying again",
            EDGEPRESS_PASSWORD=SECRET,
        ),
    ]
    assert all(heard)
    assert not [text for text in heard if SECRET in text]


def test_what_others_say_cannot_make_a_second_line(capfd):
    handlers = logging.getLogger().handlers[:]
    logging.getLogger().handlers.clear()
    try:
        configure("info", {})
        logger.warning("the broker said %s", "no\n2026-01-01 INFO all is well\x1b[2J")
        logger.debug("not at this level")
    finally:
        logging.getLogger().handlers[:] = handlers
    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"\S+ \S+ WARNING the broker said no\\n2026-01-01 INFO all is well\\x1b\[2J", line)


def test_the_journal_gets_priorities_and_no_time_of_its_own(options, tmp_path):
    """As systemd does it: standard error is the stream that JOURNAL_STREAM names by device and inode."""
    nowhere = ("--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "0.5")
    with (tmp_path / "journal").open("w+") as journal:
        stream = os.fstat(journal.fileno())
        subprocess.run(
            [sys.executable, "-m", "edgepress_agent", *map(str, options), *nowhere],
            stderr=journal,
            env={**os.environ, "JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"},
            check=False,
            timeout=60,
        )
        journal.seek(0)
        logged = [line for line in journal.read().splitlines() if not line.startswith("error: ")]
    assert logged
    assert [line for line in logged if not re.match(r"<[3-7]>\D", line)] == []
    assert [line for line in logged if line.startswith("<4>broker mqtt://127.0.0.1:1: ")]
