"""Messages survive the wire; hostile bytes never do more than be refused."""

import msgspec
import pytest
import strategies
from edgepress_protocol.errors import Rejected
from edgepress_protocol.messages import (
    MAX_MESSAGE_BYTES,
    HostState,
    Presence,
    Signed,
    ToDevice,
    ToHost,
    decode_signed,
    decode_to_device,
    decode_to_host,
    encode,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(strategies.of(ToHost))
def test_to_host_round_trip(message: msgspec.Struct) -> None:
    assert decode_to_host(encode(message)) == message


@quick
@given(strategies.of(ToDevice))
def test_to_device_round_trip(message: msgspec.Struct) -> None:
    assert decode_to_device(encode(message)) == message


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_are_a_message(data: bytes) -> None:
    for decode in (decode_to_host, decode_to_device, decode_signed):
        try:
            message = decode(data)
        except Rejected as refusal:
            assert "\n" not in str(refusal)
        else:
            assert decode(encode(message)) == message


@quick
@given(strategies.of(ToHost), st.data())
def test_altered_bytes_are_refused_or_are_a_valid_message(message: msgspec.Struct, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    try:
        altered = decode_to_host(bytes(raw))
    except Rejected:
        return
    assert isinstance(altered, msgspec.Struct)


@quick
@given(strategies.of(ToHost), st.data())
def test_truncated_bytes_are_refused(message: msgspec.Struct, data: st.DataObject) -> None:
    raw = encode(message)
    with pytest.raises(Rejected):
        decode_to_host(raw[: data.draw(st.integers(0, len(raw) - 1))])


def test_deep_nesting_and_great_length_are_refused() -> None:
    with pytest.raises(Rejected):
        decode_to_host(b"\x91" * 200_000)
    with pytest.raises(Rejected, match="at most"):
        decode_to_host(b"\0" * (MAX_MESSAGE_BYTES + 1))


def test_a_newer_side_may_send_fields_that_we_do_not_know() -> None:
    raw = msgspec.msgpack.encode({"type": "up", "session": "s", "online": True, "mood": "sunny"})
    assert decode_to_host(raw) == Presence("s", True)


def test_an_older_side_may_leave_out_fields_that_have_defaults() -> None:
    raw = msgspec.msgpack.encode({"type": "host", "session": "s", "online": False})
    assert decode_to_device(raw) == HostState("s", False)


def test_a_message_for_the_device_is_none_for_the_host() -> None:
    with pytest.raises(Rejected):
        decode_to_host(encode(HostState("s", True)))


def test_a_signature_of_another_length_is_refused() -> None:
    with pytest.raises(Rejected):
        decode_signed(encode(Signed(b"x", b"short")))
