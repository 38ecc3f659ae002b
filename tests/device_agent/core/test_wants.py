"""Nothing unsigned, misaddressed or malformed is obeyed."""

import msgspec
import pytest
from edgepress_agent.wants import open_want
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Manifest, TensorSpec, digest
from edgepress_protocol.messages import HostState, Want, decode_signed, encode
from edgepress_protocol.signing import PrivateKey
from edgepress_protocol.transfer import describe
from hypothesis import given
from hypothesis import strategies as st

KEY, STRANGER = PrivateKey.generate("host"), PrivateKey.generate("stranger")
TENSOR = (TensorSpec("x", "float32", (None, 2)),)
MANIFEST = Manifest("v", "onnx", describe(b"model" * 9)[0], TENSOR, TENSOR)
GOOD = encode(KEY.sign("want", encode(Want("default", "pi", 1, 1))))


def opened(want: msgspec.Struct, key: PrivateKey = KEY, purpose: str = "want"):
    return open_want(encode(key.sign(purpose, encode(want))), KEY.public, "default", "pi")


@pytest.mark.parametrize(
    ("want", "key", "purpose", "line"),
    [
        (Want("default", "pi", 1, 1), STRANGER, "want", "not signed by the trusted key 'host'"),
        (Want("default", "pi", 1, 1), KEY, "manifest", "not signed by the trusted key"),
        (Want("default", "nano", 1, 1), KEY, "want", "for 'nano' in fleet 'default', not for this device"),
        (Want("other", "pi", 1, 1), KEY, "want", "in fleet 'other'"),
        (Want("default", "pi", 1, 9), KEY, "want", "no common protocol version"),
        (HostState("s", online=True), KEY, "want", "a HostState stands where a want belongs"),
    ],
)
def test_refused_in_one_line(want, key, purpose, line):
    with pytest.raises(Rejected, match=line) as refused:
        opened(want, key, purpose)
    assert "\n" not in str(refused.value)


def test_a_bad_manifest_is_refused_alone():
    good, forged = KEY.sign("manifest", encode(MANIFEST)), STRANGER.sign("manifest", encode(MANIFEST) + b"")
    other = KEY.sign("want", encode(MANIFEST))
    wanted = opened(Want("default", "pi", 1, 1, manifests=(good, KEY.sign("manifest", b"junk"))))
    assert wanted.manifest(digest(good.payload)) == MANIFEST
    with pytest.raises(Rejected, match="not a message"):
        wanted.manifest(digest(b"junk"))
    with pytest.raises(Rejected, match="did not come with the want"):
        wanted.manifest("0" * 64)
    for bad in (forged, other):
        refused = opened(Want("default", "pi", 1, 1, manifests=(bad,)))
        with pytest.raises(Rejected, match="manifest is not signed by the trusted key"):
            refused.manifest(digest(bad.payload))


@given(st.binary(max_size=300))
def test_junk_is_rejected_and_never_crashes(junk):
    with pytest.raises(Rejected):
        open_want(junk, KEY.public, "default", "pi")


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_one_altered_byte_is_enough(position, flip):
    altered = GOOD[:position] + bytes([GOOD[position] ^ flip]) + GOOD[position + 1 :]
    try:
        wanted = open_want(altered, KEY.public, "default", "pi")
    except Rejected:
        return
    # What may differ is how the envelope is written, never what it holds.
    assert decode_signed(altered) == decode_signed(GOOD)
    assert wanted.want == Want("default", "pi", 1, 1)
