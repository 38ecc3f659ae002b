"""What this board is and how it feels, read below a root that may be a recorded tree. Read `probe.py` first."""
