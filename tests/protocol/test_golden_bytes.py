"""What once crossed the wire decodes for ever, and what is written today holds all that an older reader knows.

golden.json holds each message as it was first written, and stays. golden_today.json is what is written now, to the
byte; a message that gets a field changes it, on purpose: `python tests/protocol/examples.py` writes it anew.
"""

import json
from typing import Any

import examples
import msgspec
import pytest
from edgepress_protocol.messages import ToDevice, ToHost, decode_signed, decode_to_device, decode_to_host
from edgepress_protocol.signing import PrivateKey
from edgepress_protocol.transfer import decode_frame

GOLDEN = json.loads(examples.GOLDEN.read_text())


@pytest.mark.parametrize("name", examples.TO_HOST)
def test_to_host_bytes_decode_to_what_they_meant(name: str) -> None:
    assert decode_to_host(bytes.fromhex(GOLDEN[name])) == examples.TO_HOST[name]


@pytest.mark.parametrize("name", examples.TO_DEVICE)
def test_to_device_bytes_decode_to_what_they_meant(name: str) -> None:
    assert decode_to_device(bytes.fromhex(GOLDEN[name])) == examples.TO_DEVICE[name]


def holds(written: Any, known: Any) -> bool:
    """Whether every field that `known` has stands in `written` as it did; fields may have come since."""
    match known:
        case dict():
            return isinstance(written, dict) and all(
                key in written and holds(written[key], known[key]) for key in known
            )
        case list():
            return (
                isinstance(written, list)
                and len(written) == len(known)
                and all(holds(*pair) for pair in zip(written, known, strict=True))
            )
    return type(written) is type(known) and written == known


def test_what_is_written_holds_what_older_readers_know() -> None:
    written = examples.encoded()
    assert {name: written[name] for name in ("signed", "frame")} == {name: GOLDEN[name] for name in ("signed", "frame")}
    for name in GOLDEN.keys() - {"signed", "frame"}:
        known = msgspec.msgpack.decode(bytes.fromhex(GOLDEN[name]))
        assert holds(msgspec.msgpack.decode(bytes.fromhex(written[name])), known), name


def test_the_bytes_are_still_written_the_same() -> None:
    assert examples.encoded() == json.loads(examples.TODAY.read_text())


def test_every_message_has_golden_bytes() -> None:
    tags = {kind.__struct_config__.tag for kind in (*ToHost.__args__, *ToDevice.__args__)}
    assert tags == {
        msgspec.msgpack.decode(bytes.fromhex(raw))["type"]
        for name, raw in GOLDEN.items()
        if name not in {"signed", "frame"}
    }


def test_the_golden_signature_and_frame_still_open() -> None:
    signed = decode_signed(bytes.fromhex(GOLDEN["signed"]))
    assert PrivateKey(bytes(32), "golden").public.verify("manifest", signed) == b"payload"
    assert decode_frame(bytes.fromhex(GOLDEN["frame"])).index == 0
