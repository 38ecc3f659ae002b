"""The connection to the broker, what is said on it, and the files that come over it. Read `link.py` first."""
