"""Protocol buffers as bytes, for tests that write a file of ONNX without its package."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """Encode a number as protobuf does."""
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes | int) -> bytes:
    """Encode a field: bytes with their length, or a number."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content
