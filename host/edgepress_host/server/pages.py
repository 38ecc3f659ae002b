"""The page at `/`: one file, which asks the REST interface for everything it shows."""

from __future__ import annotations

import secrets
from importlib import resources

from starlette.responses import HTMLResponse


def page() -> HTMLResponse:
    """Give the page; only its own script runs in it, whatever a device says."""
    nonce = secrets.token_urlsafe(16)
    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return HTMLResponse(text.replace("NONCE", nonce), headers=headers)
