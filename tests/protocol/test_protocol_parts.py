"""Signatures, topics, versions and histograms."""

import json

import pytest
from edgepress_protocol.errors import Rejected, UsageError
from edgepress_protocol.histogram import Histogram, bucket_of, middle_of
from edgepress_protocol.messages import Signed
from edgepress_protocol.printing import indented
from edgepress_protocol.signing import PrivateKey, PublicKey
from edgepress_protocol.topics import DeviceTopic, Topics
from edgepress_protocol.version import negotiate
from hypothesis import given
from hypothesis import strategies as st

KEY = PrivateKey(bytes(range(32)), "test")


def test_what_was_signed_opens_with_the_public_half_only() -> None:
    signed = KEY.sign("want", b"payload")
    assert KEY.public.verify("want", signed) == b"payload"
    with pytest.raises(Rejected, match="trusted key 'other'"):
        PrivateKey.generate("other").public.verify("want", signed)


def test_a_signature_serves_one_purpose() -> None:
    with pytest.raises(Rejected):
        KEY.public.verify("want", KEY.sign("manifest", b"payload"))


@given(st.binary(max_size=50), st.binary(min_size=64, max_size=64))
def test_made_up_signatures_are_refused(payload: bytes, signature: bytes) -> None:
    with pytest.raises(Rejected):
        KEY.public.verify("want", Signed(payload, signature))


def test_keys_round_trip_as_text() -> None:
    assert PrivateKey.from_text(KEY.to_text()).to_text() == KEY.to_text()
    assert PublicKey.from_text(KEY.public.to_text()).verify("want", KEY.sign("want", b"x")) == b"x"


@pytest.mark.parametrize(
    "text", ["", "hello", "edgepress-ed25519-public AAAA name", "edgepress-ed25519-public !!! name", "a b c d"]
)
def test_damaged_keys_say_so(text: str) -> None:
    with pytest.raises(UsageError, match="edgepress keys init"):
        PublicKey.from_text(text)


def test_a_private_key_is_not_taken_for_a_public_one() -> None:
    with pytest.raises(UsageError, match="private"):
        PublicKey.from_text(KEY.to_text())


def test_topics_are_those_of_the_design() -> None:
    topics = Topics("home")
    assert topics.device("pi-1", "want") == "edgepress/v1/home/d/pi-1/want"
    assert topics.blob("a" * 64) == "edgepress/v1/home/blob/" + "a" * 64
    assert topics.parse_device("edgepress/v1/home/d/pi-1/up") == DeviceTopic("pi-1", "up")
    assert max(t.count("/") for t in (topics.device("x", "req/status"), topics.host_state)) < 7


@given(st.text(max_size=40))
def test_foreign_topics_are_refused(topic: str) -> None:
    with pytest.raises(Rejected):
        Topics("home").parse_device(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "-x", "ü", "a" * 65, "a\n"])
def test_names_that_would_break_a_topic_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        Topics(name)
    with pytest.raises(UsageError):
        Topics("home").device(name, "want")


def test_the_highest_common_version_is_used() -> None:
    assert negotiate((1, 3), (2, 2)) == 2
    with pytest.raises(Rejected, match="upgrade edgepress on the other side"):
        negotiate((2, 3), (1, 1))
    with pytest.raises(Rejected, match="upgrade edgepress on this side"):
        negotiate((1, 1), (2, 3))


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=300), st.floats(0, 100))
def test_percentiles_are_right_to_half_a_percent(values: list[int], percent: float) -> None:
    exact = sorted(values)[max(1, -(-len(values) * percent // 100)).__int__() - 1]
    assert Histogram.of(values).percentile_ms(percent) == pytest.approx(exact / 1e6, rel=0.005)


@given(st.lists(st.integers(0, 10**10)), st.lists(st.integers(0, 10**10)))
def test_merging_is_counting_together(left: list[int], right: list[int]) -> None:
    assert Histogram.of(left).merge(Histogram.of(right)) == Histogram.of(left + right)


@given(st.integers(0, 1 << 44))
def test_buckets_ascend_and_hold_their_values(value: int) -> None:
    assert bucket_of(value) <= bucket_of(value + 1) <= bucket_of(value) + 1
    assert middle_of(bucket_of(value)) == pytest.approx(value, rel=0.004, abs=0.5)


def test_an_empty_histogram_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="empty"):
        Histogram().percentile_ms(50)


NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=6),
    max_leaves=30,
)


@given(ANY_JSON)
def test_json_for_people_says_what_was_given(data: object) -> None:
    assert json.loads(indented(data)) == data


@given(st.lists(NUMBERS, min_size=1))
def test_numbers_of_an_array_stand_side_by_side(numbers: list[float]) -> None:
    assert indented({"bins": numbers}).count("\n") == 2
