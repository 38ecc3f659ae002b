"""From the names that a user writes to artifacts and manifests. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from edgepress_protocol.errors import UsageError


class Named(Protocol):
    """Something that is one variant in one format."""

    @property
    def variant(self) -> str:
        """Name of the variant."""

    @property
    def format(self) -> str:
        """Format of the file."""


class Added(Named, Protocol):
    """The same, with the time at which it came."""

    @property
    def added_unix_s(self) -> float:
        """When the controller came to know it."""


N = TypeVar("N", bound=Named)
A = TypeVar("A", bound=Added)


def name_of(one: Named) -> str:
    """`variant:format`, as commands print and take it."""
    return f"{one.variant}:{one.format}"


def matching(wanted: Sequence[str], known: Sequence[N]) -> list[N]:
    """Everything that the names (`variant`, or `variant:format`) mean, in the order of `known`; all for no names.

    Raises:
        UsageError: a name means nothing; the line has the nearest right one.
    """
    for name in wanted:
        if not any(name in (one.variant, name_of(one)) for one in known):
            raise UsageError(f"no variant {name!r}{_hint(name, known)}")
    return [one for one in known if not wanted or one.variant in wanted or name_of(one) in wanted]


def only(name: str, known: Sequence[N]) -> N:
    """Return the one artifact that a name means.

    Raises:
        UsageError: it means none, or several formats.
    """
    found = matching([name], known)
    if len(found) > 1:
        raise UsageError(f"{name!r} is there as {' and '.join(map(name_of, found))}; write one of these")
    return found[0]


def latest(manifests: Iterable[A]) -> list[A]:
    """Of manifests with the same variant and format, the one that was added last."""
    by_name = {name_of(one): one for one in sorted(manifests, key=lambda one: one.added_unix_s)}
    return list(by_name.values())


def _hint(name: str, known: Sequence[Named]) -> str:
    names = list(dict.fromkeys([one.variant for one in known] + [name_of(one) for one in known]))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    if near:
        return f"; did you mean {near[0]!r}?"
    variants = sorted({one.variant for one in known})
    return f"; there are {', '.join(variants)}" if variants else "; none is known here, so `edgepress profile` it first"
