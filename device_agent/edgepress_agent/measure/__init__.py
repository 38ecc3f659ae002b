"""A trial, from the lock to the numbers; the runtime lives in a child process. Read `profile.py` first."""
