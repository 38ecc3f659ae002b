"""A walk through an ONNX graph and what is inside it."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and the subgraphs of its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from graphs(inner)
