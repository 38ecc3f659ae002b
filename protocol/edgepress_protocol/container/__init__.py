"""The edgepress container: a file of weights in layouts of our own, expanded to the very bytes of the file.

What Deep Compression (arXiv:1510.00149) reported, as something that is shipped. `writer` encodes, `reader` decodes and
describes the form; `layouts` holds the kinds of segments, `places` and `rans` what the closest of them is made of.
"""

from edgepress_protocol.container.reader import declared_bytes, decode, read_header
from edgepress_protocol.container.writer import encode

PARTS = ("costs", "dictionary", "layouts", "pieces", "places", "rans", "reader", "spans", "writer")

__all__ = ["PARTS", "declared_bytes", "decode", "encode", "read_header"]
