"""What crosses the wire between host and agents: no input or output, nothing of ours imported.

Read `messages` first: it holds everything that is said; `manifest`, `measurement` and `transfer` are its nouns.
"""
