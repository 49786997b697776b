"""The status page: what a person on call has to know, in ten seconds.

Made whole on the server, so that it needs no script for the plain facts; a few lines of script ask
for it again every five seconds, put its main part in place, and say so when nobody answers.  It
loads nothing from anywhere, and a policy forbids it to.  All that is shown is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kvproto.base.escape import printable
from kvproto.ops.render import span

__all__ = ["PAGE_POLICY", "findings", "render_page"]

SOON = 14 * 86400.0
"""Seconds before the end of the certificate at which it needs attention."""

NEARLY_FULL = 0.9

Status = Mapping[str, Any]


def findings(status: Status, not_ready: str) -> list[str]:
    """Return what is wrong or about to go wrong, the worst first.

    Args:
        status: As ``kvtls status`` has it.
        not_ready: Why clients are not served, ``""`` when they are.
    """
    found = [f"Clients are not served: {not_ready}"] if not_ready else []
    found += [
        f"Listener {row['name']}: {row['error']}" for row in status["listeners"] if row["error"]
    ]
    generation = status["generation"]
    if generation is not None:
        left = generation["expires_in_s"]
        if left <= 0:
            found.append("The certificate HAS EXPIRED")
        elif left < SOON:
            found.append(f"The certificate ends in {span(left)}")
        verdict = generation["last_verdict"]
        if verdict is not None and not verdict["ok"]:
            found.append(f"The last {verdict['action']} was refused: {verdict['reason']}")
        elif generation["disk_differs"]:
            found.append("The credential files hold something else than what is served")
        found += generation["warnings"]
    limits = status["limits"]
    for name, words in (("connections", "connections"), ("unauthenticated", "strangers")):
        used, limit = limits[name]["used"], limits[name]["limit"]
        if limit and used >= NEARLY_FULL * limit:
            found.append(f"{used} of {limit} {words} are taken")
    found += [
        f"Bucket {row['name']} is {row['bytes'] / row['limit_bytes']:.0%} full"
        for row in status.get("buckets", ())
        if row["limit_bytes"] and row["bytes"] >= NEARLY_FULL * row["limit_bytes"]
    ]
    return found


def render_page(status: Status, not_ready: str, history: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        status: As ``kvtls status`` has it.
        not_ready: Why clients are not served, ``""`` when they are.
        history: As `kvproto.ops.history.History.report` has it.
    """
    service = status["service"]
    mood = "bad" if not_ready else "warn" if findings(status, not_ready) else "good"
    headline = {
        "good": "All is well",
        "warn": "Serves, and needs attention",
        "bad": "Not serving clients",
    }[mood]
    if service["state"] in {"draining", "drained", "stopping"}:
        headline = f"Not serving clients: {service['state']}"
    parts = [
        f'<p id="state" class="{mood}" role="status"><strong>{_t(headline)}</strong>',
        (
            f"<span>kvtls {_t(service['version'])}, mode {_t(service['mode'])}, up "
            f"{_t(span(service['uptime_s']))}, process {_t(service['pid'])}</span></p>"
        ),
        _attention(findings(status, not_ready)),
        _curves(history["samples"]),
        _listeners(status),
        _buckets(status),
        _credentials(status["generation"]),
        _last(status),
    ]
    return _FRAME.format(style=_STYLE, script=_SCRIPT, main="\n".join(filter(None, parts)))


def _t(value: object) -> str:
    """Return text for HTML."""
    return escape(printable(str(value)))


def _section(title: str, content: str) -> str:
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{_t(title)}</h2>{content}</section>'


def _attention(found: Sequence[str]) -> str:
    if not found:
        return ""
    rows = "".join(f"<li>{_t(text)}</li>" for text in found)
    return _section("Needs attention", f"<ul>{rows}</ul>")


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = "".join(f'<th scope="col">{_t(name)}</th>' for name in head)
    body = "".join(
        "<tr>"
        f'<th scope="row">{_t(row[0])}</th>'
        + "".join(f"<td>{_t(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" role="group" tabindex="0" aria-label="{_t(caption)}"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _curves(samples: Sequence[Mapping[str, Any]]) -> str:
    curves = [
        _curve("Requests a second", [row["requests_per_s"] for row in samples], "{:,.0f}"),
        _curve("Connections", [row["connections"] for row in samples], "{:,.0f}"),
        _curve("Median time of a request", [_ms(row["p50"]) for row in samples], "{:.3f} ms"),
        _curve("99th percentile", [_ms(row["p99"]) for row in samples], "{:.3f} ms"),
    ]
    return _section("Last quarter of an hour", f'<div class="curves">{"".join(curves)}</div>')


def _ms(seconds: float | None) -> float:
    return 0.0 if seconds is None or not math.isfinite(seconds) else seconds * 1000


def _curve(title: str, values: Sequence[float], shown: str) -> str:
    """Return one curve with its last value and its highest in words."""
    if not values:
        return f"<figure><figcaption>{_t(title)}: no samples yet</figcaption></figure>"
    top = max(values) or 1.0
    step = 300 / max(1, len(values) - 1)
    points = " ".join(
        f"{number * step:.1f},{58 - 54 * value / top:.1f}" for number, value in enumerate(values)
    )
    words = f"{title}: {shown.format(values[-1])}, at most {shown.format(max(values))}"
    return (
        f"<figure><figcaption>{_t(words)}</figcaption>"
        f'<svg viewBox="0 0 300 60" role="img" aria-label="{_t(words)}" '
        'preserveAspectRatio="none">'
        f'<polyline points="{points}" fill="none" vector-effect="non-scaling-stroke"/>'
        "</svg></figure>"
    )


def _listeners(status: Status) -> str:
    rows = [
        (
            row["name"],
            row["address"] or "-",
            "retrying" if row["retry_in_s"] is not None else row["state"],
            sum(row["connections"].values()),
            row["restarts"],
        )
        for row in status["listeners"]
    ]
    head = ("Listener", "Address", "State", "Connections", "Restarts")
    return _section("Listeners", _table("Listeners", head, rows))


def _mebibytes(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 2**20:,.1f} MiB"


def _buckets(status: Status) -> str:
    rows = [
        (
            row["name"],
            "unknown" if row["items"] is None else f"{row['items']:,}",
            _mebibytes(row["bytes"]),
            _mebibytes(row["limit_bytes"]),
            f"{row['evictions']:,}",
        )
        for row in status.get("buckets", ())
    ]
    if not rows:
        return ""
    head = ("Bucket", "Documents", "In use", "Limit", "Evicted")
    return _section("Store", _table("Store", head, rows))


def _credentials(generation: Status | None) -> str:
    if generation is None:
        return ""
    rows = [
        ("Generation", generation["number"]),
        ("Ends", f"{generation['not_after'][:10]}, in {span(generation['expires_in_s'])}"),
        ("Names", ", ".join(generation["names"]) or "-"),
        ("Fingerprint", generation["fingerprint_sha256"]),
    ]
    listed = "".join(f"<dt>{_t(name)}</dt><dd>{_t(value)}</dd>" for name, value in rows)
    return _section("Certificate", f"<dl>{listed}</dl>")


def _last(status: Status) -> str:
    """Return what happened last: rotations and their verdicts, who was cut and why."""
    rows = []
    generation = status["generation"]
    verdict = None if generation is None else generation["last_verdict"]
    if verdict is not None:
        outcome = (
            f"refused ({verdict['stage']}): {verdict['reason']}"
            if not verdict["ok"]
            else f"generation {verdict['generation']} serves"
        )
        rows.append((f"{verdict['action']}, {verdict['at'][:19]} UTC", outcome))
    counters = status["counters"]
    rows += [
        (f"ended: {reason}", f"{number:,} connections")
        for reason, number in sorted(counters["ended"].items(), key=lambda item: -item[1])
    ]
    rows += [
        (f"timed out while {state}", f"{number:,} connections")
        for state, number in counters["deadline_expired"].items()
    ]
    if not rows:
        return ""
    return _section("What happened", _table("What happened", ("What", "Outcome"), rows))


_STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --line: #c8ced6; --soft: #f3f5f8;
  --good: #0b6b32; --warn: #7a4a00; --bad: #a3111b; --curve: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --bg: #12161b; --fg: #e7ebf0; --line: #3b444f;
  --soft: #1b2128; --good: #5fd38d; --warn: #f0b85a; --bad: #ff8a8a; --curve: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 110rem; background: var(--bg); color: var(--fg);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.1rem; margin: 0 0 .5rem; }
h2 { font-size: 1rem; margin: 0 0 .5rem; }
main { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); }
#state, #gone { grid-column: 1 / -1; margin: 0; padding: .8rem 1rem; border: 2px solid; }
#state strong { display: block; font-size: 1.8rem; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
#state span { color: var(--fg); }
section { background: var(--soft); padding: 1rem; min-width: 0; }
ul { margin: 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.curves { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
figure { margin: 0; }
svg { width: 100%; height: 4rem; background: var(--bg); border: 1px solid var(--line); }
polyline { stroke: var(--curve); stroke-width: 2; }
@media (min-width: 120rem) { body { font-size: 1.3rem; } }
"""

_SCRIPT = """
const gone = document.getElementById("gone");
let failures = 0;
async function again() {
  try {
    const answer = await fetch(location.pathname,
      {cache: "no-store", signal: AbortSignal.timeout(4000)});
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const held = document.activeElement && document.activeElement.getAttribute("aria-label");
    document.querySelector("main").replaceChildren(...page.querySelector("main").childNodes);
    if (held) for (const one of document.querySelectorAll("[tabindex]"))
      if (one.getAttribute("aria-label") === held) one.focus({preventScroll: true});
    failures = 0;
    gone.hidden = true;
  } catch (error) {
    failures += 1;
    if (failures === 1) gone.dataset.since = new Date().toLocaleTimeString();
    gone.textContent = "Nobody answers since " + gone.dataset.since + ": what stands below is old.";
    gone.hidden = false;
  }
  setTimeout(again, 5000);
}
setTimeout(again, 5000);
"""

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kvtls status</title>
<link rel="icon" href="data:,">
<noscript><meta http-equiv="refresh" content="15"></noscript>
<style>{style}</style>
</head>
<body>
<header>
<h1>kvtls status</h1>
<p id="gone" class="bad" role="alert" hidden></p>
</header>
<main>
{main}
</main>
<script>{script}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


PAGE_POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""What the page may do: what is in it, and ask for itself again."""
