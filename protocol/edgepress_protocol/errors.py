"""Errors, grouped by who must act on them."""


class EdgepressError(Exception):
    """Base of every error that edgepress raises on purpose; the text is one line for a person."""


class UsageError(EdgepressError):
    """The user asked for something that cannot be: one line, exit status 2."""


class Rejected(EdgepressError):  # noqa: N818 - it names what happened to the bytes
    """Untrusted bytes failed a check: wrong length, digest, signature or shape. Never retried."""


class Unavailable(EdgepressError):  # noqa: N818 - it names the state of the other side
    """Network, disk or device is not there at present: worth another try, with back-off."""
