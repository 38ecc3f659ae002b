"""How commands reach a controller, and what they bring it. Read `client.py` first."""
