"""Small real file systems: full, full at the start, and read-only; what is active is served through all of it."""

import asyncio
import contextlib
import http.client
import os
import shutil
import socket
import subprocess

import pytest
from edgepress_protocol.messages import Measured

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount"),
]


@pytest.fixture
def small_disk(scene):
    """A file system of 3 MB that holds the agent's state, and nothing else."""
    folder = scene.agent.state_dir
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount a tmpfs")
    yield folder
    if scene.agent.process is not None:
        scene.agent.process.kill()
        scene.agent.process.wait()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Take every block that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)
    return filler


async def becomes_read_only(folder):
    """Remount a file system read-only, which the kernel refuses while an ending process still has a file open there."""
    for _ in range(100):
        done = await asyncio.to_thread(
            subprocess.run, ["mount", "-o", "remount,ro", str(folder)], check=False, capture_output=True, text=True
        )
        if done.returncode == 0:
            return
        assert "busy" in done.stderr, done.stderr
        await asyncio.sleep(0.1)
    pytest.fail(f"still busy after 10 s: {done.stderr}")


def ready(address):
    """Whether the active model answers on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(address))
        connection = http.client.HTTPConnection("board")
        connection.sock = client
        connection.request("GET", "/v2/models/active/ready")
        return connection.getresponse().status == 200


def phase(host, number, scene, model):
    """The phase of a deployment, once the device speaks of it."""
    status = host.states[-1].deployment if host.states else None
    return status.phase if status and status.deployment == scene.deployment(model, number).id else None


def test_a_disk_that_fills_up_is_reported_and_recovered_from_and_never_costs_the_active_model(scene, small_disk):
    pytest.importorskip("onnxruntime")

    async def story():
        first, second = scene.model(seed=1), scene.model(seed=3)
        large = scene.model(4_000_000, chunk_bytes=65536, seed=2)
        async with scene.host() as host:
            scene.agent.start()
            manifests = host.offer(first, large, second)
            await host.want(deployment=scene.deployment(first, 1), manifests=manifests)
            await host.until(lambda: phase(host, 1, scene, first) == "active")

            await host.want(deployment=scene.deployment(large, 2), manifests=manifests)
            await host.until(lambda: phase(host, 2, scene, large) == "failed")
            assert host.states[-1].deployment.reason.startswith("disk full: ")
            assert host.states[-1].active.variant == "tiny-1"

            filler = fill(small_disk)
            await host.want(trials=(scene.trial(first, 3),), manifests=manifests)
            await host.until(lambda: host.reports)
            assert isinstance(host.reports[-1].outcome, Measured), host.reports[-1]
            scene.agent.kill()
            heard = len(host.states)
            scene.agent.start()
            await host.until(lambda: len(host.states) > heard and host.states[-1].active)
            assert host.states[-1].active.variant == "tiny-1", "a full disk must not keep it from being served again"

            filler.unlink()
            await host.want(deployment=scene.deployment(second, 4), manifests=manifests)
            await host.until(lambda: phase(host, 4, scene, second) == "active")

    asyncio.run(story())


def test_a_card_that_has_become_read_only_still_serves_the_active_model(scene, small_disk, tmp_path):
    pytest.importorskip("onnxruntime")
    address = tmp_path / "serve.sock"

    async def story():
        first, second = scene.model(seed=1), scene.model(seed=2)
        async with scene.host() as host:
            scene.agent.start("--serve", f"unix:{address}")
            manifests = host.offer(first, second)
            await host.want(deployment=scene.deployment(first, 1), manifests=manifests)
            await host.until(lambda: phase(host, 1, scene, first) == "active")
            scene.agent.stop()
            await becomes_read_only(small_disk)

            heard = len(host.states)
            scene.agent.start("--serve", f"unix:{address}")
            await host.until(lambda: len(host.states) > heard and host.states[-1].active)
            assert "is read-only: what is active is served" in host.states[-1].refused
            assert await asyncio.to_thread(ready, address)
            await host.want(deployment=scene.deployment(second, 2), manifests=manifests)
            await host.until(lambda: phase(host, 2, scene, second) == "failed")
            assert "Read-only file system" in host.states[-1].deployment.reason
            assert scene.agent.process.poll() is None
            assert await asyncio.to_thread(ready, address)

    asyncio.run(story())


def test_a_read_only_root_with_a_state_folder_of_its_own(scene, small_disk, tmp_path):
    """As on boards whose card is never written: all but the state folder refuses every write."""
    pytest.importorskip("onnxruntime")
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    inside = 'mount -o remount,ro,bind / && ! touch /read-only 2>/dev/null && exec "$@"'
    scene.agent.command = ["unshare", "--mount", "sh", "-c", inside, "sh", *scene.agent.command]

    async def story():
        model = scene.model()
        async with scene.host() as host:
            scene.agent.start()
            await host.want(
                trials=(scene.trial(model, 2),), deployment=scene.deployment(model, 1), manifests=host.offer(model)
            )
            await host.until(lambda: host.reports and phase(host, 1, scene, model) == "active")
            assert isinstance(host.reports[-1].outcome, Measured), host.reports[-1]
            assert not host.states[-1].refused

    asyncio.run(story())
