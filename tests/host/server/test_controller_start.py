"""How a controller starts, or says in one line why it does not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import aiomqtt
import pytest


def test_a_second_controller_on_the_same_data_is_refused_with_one_line(controller, controllers):
    second = controllers(data_dir=controller.data_dir)
    assert second.start() == ""
    assert second.process.wait(5) == 2
    line = second.errors.read_text().splitlines()[-1]
    assert f"pid {controller.process.pid}, {controller.http.base_url}".rstrip("/") in line
    controller.get("/v1/health")


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (("--broker", "mqtt://127.0.0.1:1"), 1, "broker mqtt://127.0.0.1:1 cannot be reached"),
        (("--broker", "http://me:secret@there"), 2, "expected mqtt://"),
        (("--bind", "203.0.113.7"), 2, "cannot listen on 203.0.113.7:1883"),
        (("--bind", "127.0.0.1", "--broker", "mqtt://there"), 2, "give one of them"),
        (("--fleet", "a/b"), 2, "fleet 'a/b'"),
        (("--port", "1"), 2, None),
    ],
)
def test_what_cannot_be_is_one_line(controllers, arguments, status, line):
    if line is None and os.geteuid() == 0:
        pytest.skip("root may listen on every port")
    controller = controllers(*arguments)
    assert controller.start() == ""
    assert controller.process.wait(15) == status
    errors = controller.errors.read_text()
    assert (line or "cannot listen on 127.0.0.1:1") in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert "secret" not in errors


def test_without_a_key_one_line_says_how_to_make_one(controllers, tmp_path):
    controller = controllers("--keys", str(tmp_path / "nowhere"))
    assert controller.start() == ""
    assert controller.process.wait(5) == 2
    assert "edgepress keys init" in controller.errors.read_text().splitlines()[-1]


def test_a_bound_broker_takes_the_password_only(controllers: Callable[..., Any]):
    controller = controllers("--bind", "127.0.0.1:0")
    line = controller.start()
    file = controller.data_dir / "broker-password"
    assert str(file) in line
    assert file.stat().st_mode & 0o777 == 0o600
    password = file.read_text()
    assert password not in line
    assert controller.get("/v1/health")["broker_password_file"] == str(file)

    async def connect(with_password: str | None) -> None:
        async with aiomqtt.Client(
            "127.0.0.1",
            controller.broker_port,
            protocol=aiomqtt.ProtocolVersion.V5,
            username="edgepress" if with_password else None,
            password=with_password,
            timeout=2,
        ):
            pass

    asyncio.run(connect(password))
    for wrong in ("wrong", None):
        with pytest.raises(aiomqtt.MqttError):
            asyncio.run(connect(wrong))
