"""Long parts of a page that nobody sees before opening them, compressed; the page's script unpacks them."""

from __future__ import annotations

import base64
import gzip

from markupsafe import Markup

SHORT, SHORT_AMONG_MANY = 200_000, 1_500
"""Characters of a part up to which it is left as it is, in a page of few trials and in one of many."""

MANY = 300
"""Trials; pages of fewer show their tables without a script."""


def short_part(trials: int) -> int:
    """Characters up to which a part is left as it is in a page of so many trials."""
    return SHORT if trials < MANY else SHORT_AMONG_MANY


def folded(part: Markup, short: int) -> Markup:
    """The content of a ``details`` element: itself, or packed as a script element that opening it unpacks."""
    if len(part) <= short:
        return part
    return Markup(f'<script type="application/gzip" data-part>{packed(part)}</script>{_WITHOUT}')


def data_script(attribute: str, content: Markup, short: int) -> Markup:
    """JSON for the page's script, under an attribute that names it."""
    kind, text = ("json", content) if len(content) <= short else ("gzip", packed(content))
    return Markup(f'<script type="application/{kind}" {attribute}>{text}</script>')


def packed(text: str) -> str:
    """``text`` as gzip in base64, always the same for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


_WITHOUT = "<noscript><p>This part is packed: it needs JavaScript.</p></noscript>"
