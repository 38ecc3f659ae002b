"""From measurements to a choice, and why the others lost. Read `select.py` first."""
