"""The active model behind a socket, in a process of its own. Read `serve.py` first."""
