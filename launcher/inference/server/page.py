"""The chat page: one file without a build, which asks this server alone."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

_FILE = Path(__file__).with_name("chat.html")


@lru_cache(maxsize=1)
def chat_page() -> bytes:
    """Return the page."""
    return _FILE.read_bytes()


@lru_cache(maxsize=1)
def page_headers() -> dict[str, str]:
    """Return its headers: a browser runs the page's own script and style, and lets it ask nobody else."""
    script, style = (_digest(tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def _digest(tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), chat_page(), re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"
