"""All that the agent keeps on disk: whole or absent, whenever the power goes. Read `slots.py` first."""
