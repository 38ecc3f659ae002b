"""The agent as a service of systemd: what is put where, and taken away again. Read `plan.py` first."""
