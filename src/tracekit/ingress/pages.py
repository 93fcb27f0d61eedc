"""The few HTML pages: a plan to decide on, the decision, and a refusal as a person's browser should show it. The
overview (`ingress.overview`) is made with the same frame.

Everything that comes from elsewhere is escaped, and cannot pass for what it is not. Nothing is loaded, and no script
runs.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from typing import Any

from starlette.responses import HTMLResponse

from tracekit.ingress.problems import Refused
from tracekit.workers.words import printable

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}"
    "dt{font-weight:600}dd{margin:0 0 .6rem}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid;border-radius:.3rem;padding:.7rem}"
    "form{display:inline-block;margin:0 .6rem .6rem 0}"
    "button,input{font:inherit;padding:.5rem 1rem}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
    "th,td{text-align:left;padding:.1rem .7rem .1rem 0;border-bottom:1px solid #8886;overflow-wrap:anywhere}"
    ".number{text-align:right;white-space:nowrap}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    ),
    # The address is the credential: it goes nowhere.
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}

ROUTE = "/approvals/{token}"
OVERVIEW = "/"

LABELS = {"approve": "Approve", "reject": "Reject", "defer": "Ask me later"}


def wanted(route: str | None, accept: str) -> bool:
    """Whether a person's browser asks for a page that people get."""
    return route in (ROUTE, OVERVIEW) and "text/html" in accept.lower()


def page(title: str, body: str, status: int = 200, *, again: int = 0) -> HTMLResponse:
    """A page around `body`, which is HTML already. It is loaded again after so many seconds, if any."""
    refresh = f'<meta http-equiv="refresh" content="{again}">' if again else ""
    return HTMLResponse(
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n",
        status,
        HEADERS,
    )


def problem(refused: Refused) -> HTMLResponse:
    """A refusal."""
    response = page(
        refused.reason.title,
        f"<p>{escape(refused.detail)}</p><p>{escape(refused.hint)}</p>",
        refused.reason.status,
    )
    response.headers.update(refused.headers)
    return response


def approval(facts: Mapping[str, str], data: Any, decisions: tuple[str, ...]) -> HTMLResponse:
    """What there is to decide: `facts` by name, all of `data` as it is, and a form for each decision."""
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(printable(text))}</dd>" for name, text in facts.items())
    shown = escape(printable(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True)))
    # Without an action a form goes to the page's own address.
    forms = "".join(
        f'<form method="post"><button name="decision" value="{escape(decision)}">'
        f"{escape(LABELS[decision])}</button></form>"
        for decision in decisions
    )
    return page("A plan waits for you", f"<dl>{listed}</dl><h2>The exact plan</h2><pre>{shown}</pre>{forms}")


def decided(decision: str, by: str, at: str) -> HTMLResponse:
    """The decision that stands."""
    words = {"approve": "approved", "reject": "rejected", "defer": "put off"}.get(decision, decision)
    return page(f"The plan is {words}", f"<p>Decided by {escape(by)} at {escape(at)}. You can close this page.</p>")
