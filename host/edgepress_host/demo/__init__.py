"""The whole line on one machine, with the commands that a user would type. Read `play.py` first."""
