"""Keys, files by content, and settings on disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest
from edgepress_host import keys
from edgepress_host.fleet.blobs import BlobStore
from edgepress_host.server.broker import embedded_endpoint, parse_url
from edgepress_protocol.errors import Rejected, Unavailable, UsageError
from hypothesis import given
from hypothesis import strategies as st


async def pieces(*data: bytes):
    for piece in data:
        yield piece


def receive(store: BlobStore, data: bytes, sha256: str | None = None) -> str:
    sha256 = sha256 or hashlib.sha256(data).hexdigest()
    asyncio.run(store.receive(sha256, pieces(data[:7], data[7:])))
    return sha256


def test_a_key_is_private_and_never_overwritten(tmp_path):
    made = keys.init(tmp_path / "keys", "fleet-key")
    assert (tmp_path / "keys" / keys.PRIVATE_NAME).stat().st_mode & 0o777 == 0o600
    assert keys.load(tmp_path / "keys").to_text() == made.to_text()
    signed = made.sign("want", b"payload")
    assert keys.load_public(tmp_path / "keys").verify("want", signed) == b"payload"
    with pytest.raises(UsageError, match="never overwritten"):
        keys.init(tmp_path / "keys")
    assert keys.load(tmp_path / "keys").to_text() == made.to_text()
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [keys.PRIVATE_NAME, keys.PUBLIC_NAME]


def test_a_key_that_others_can_read_is_refused(tmp_path):
    keys.init(tmp_path)
    (tmp_path / keys.PRIVATE_NAME).chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        keys.load(tmp_path)
    (tmp_path / keys.PRIVATE_NAME).write_bytes(b"\xff\xfe")
    (tmp_path / keys.PRIVATE_NAME).chmod(0o600)
    with pytest.raises(UsageError, match="cannot read"):
        keys.load(tmp_path)
    with pytest.raises(UsageError, match="edgepress keys init"):
        keys.load(tmp_path / "nowhere")


@pytest.mark.parametrize("data", [b"compressible" * 20_000, os.urandom(200_000)], ids=["zstd", "plain"])
def test_chunks_are_those_of_the_manifest(tmp_path, data):
    store = BlobStore(tmp_path)
    blob = store.describe(receive(store, data))
    assert store.holds(blob)
    chunks = [store.chunk(blob, index) for index in range(len(blob.wire.chunks))]
    assert hashlib.sha256(b"".join(chunks)).hexdigest() == blob.wire.sha256
    assert tuple(hashlib.sha256(chunk).digest() for chunk in chunks) == blob.wire.chunks


def test_a_disk_that_lies_is_found_out(tmp_path):
    store = BlobStore(tmp_path)
    sha256 = receive(store, os.urandom(200_000))
    blob = store.describe(sha256)
    with (tmp_path / "files" / sha256).open("r+b") as file:
        file.seek(70_000)
        file.write(b"altered")
    store.chunk(blob, 0)
    with pytest.raises(Rejected, match="altered on disk"):
        store.chunk(blob, 1)
    with pytest.raises(Rejected, match="altered on disk"):
        store.describe(sha256)


def test_what_came_wrong_leaves_nothing(tmp_path):
    store = BlobStore(tmp_path)
    with pytest.raises(Rejected, match="send it again"):
        receive(store, b"some bytes", "0" * 64)
    assert list((tmp_path / "files").iterdir()) == []
    (tmp_path / "files" / ".left-over").write_bytes(b"of a controller that was killed")
    BlobStore(tmp_path)
    assert list((tmp_path / "files").iterdir()) == []


def test_sweeping_spares_what_is_kept_and_what_is_young(tmp_path):
    store = BlobStore(tmp_path)
    kept = store.describe(receive(store, b"kept" * 1000))
    store.describe(receive(store, b"not kept" * 1000))
    assert store.sweep([kept], time.time() - 60) == 0
    on_its_way = tmp_path / "files" / ".on-its-way"
    on_its_way.write_bytes(b"half of a file")
    assert store.sweep([kept], time.time() + 1) > 8000
    assert store.holds(kept)
    assert on_its_way.exists()
    assert len(list(tmp_path.glob("*/*"))) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which takes root")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        store = BlobStore(tmp_path)
        with pytest.raises(Unavailable, match="disk full"):
            receive(store, os.urandom(100_000))
        assert list((tmp_path / "files").iterdir()) == []
        receive(store, b"fits")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_broker_is_named_by_its_url():
    endpoint = parse_url("mqtts://me:p%40ss@broker.example")
    assert (endpoint.host, endpoint.port, endpoint.username, endpoint.password) == (
        "broker.example",
        8883,
        "me",
        "p@ss",
    )
    assert endpoint.url == "mqtts://me@broker.example:8883"
    assert "p@ss" not in repr(endpoint)
    assert parse_url("mqtt://[::1]:1884").url == "mqtt://[::1]:1884"


@given(st.text())
def test_any_other_text_is_refused_in_one_line(text):
    try:
        parse_url(text)
    except UsageError as error:
        assert "expected mqtt://" in str(error)


def test_the_broker_comes_back_at_the_port_of_the_last_time(tmp_path: Path):
    first = embedded_endpoint(None, tmp_path)
    assert (first.host, first.password) == ("127.0.0.1", None)
    assert embedded_endpoint(None, tmp_path) == first
    for spoilt in ("nonsense", "99999999"):
        (tmp_path / "broker-port").write_text(spoilt)
        assert embedded_endpoint(None, tmp_path).port > 0
