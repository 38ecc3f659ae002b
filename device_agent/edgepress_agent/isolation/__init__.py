"""What keeps a model in its place. Read `confine.py` first: what a child process gives up before it loads anything."""
