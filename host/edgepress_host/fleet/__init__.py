"""The fleet, decided in pure code: desired states, rollouts, who is sent which chunk. Read `fleet.py` first."""
