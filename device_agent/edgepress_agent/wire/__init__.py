"""The connection to the broker, what is said on it, and the files that come over it. Read `link.py` first."""

# Before anything else of the wire imports paho: see there.
from edgepress_agent.wire import lean as lean
