"""The status page: what a person on call has to know, in ten seconds.

Made whole on the server, so that it needs no script for the plain facts; a few lines of script ask
for it again every five seconds, put its main part in place, and say so when nobody answers.  It
loads nothing from anywhere, and a policy forbids it to.  All that is shown is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from kvproto.base.escape import printable
from kvproto.ops.curves import curves
from kvproto.ops.page_frame import framed
from kvproto.ops.render import span
from kvproto.tls.checks import is_ending

__all__ = ["findings", "render_page"]

SOON = 14 * 86400.0
"""Seconds before the end of the certificate at which it needs attention, at the earliest."""

NEARLY_FULL = 0.9

BAD_ROW = ' class="bad"'

LONG, LONGEST = ' class="long"', 28
"""Cells with more characters may be broken anywhere."""

NAMED = 3
"""Servers that do not answer and have a line each; more share one."""

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
        elif _ends_soon(generation):
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
        f"Bucket {row['name']} is {_fill(row):.0%} full"
        for row in status["buckets"]
        if _fill(row) >= NEARLY_FULL
    ]
    found += _silent([row for row in _servers_of(status) if not row["up"]])
    found += [
        f"Node {row['node']}: {row['problem']}"
        for row in status.get("nodes", {}).get("connectors", ())
        if row["problem"] and row["state"] != "linked"
    ]
    return found


def _fill(bucket: Status) -> float:
    """Return which part of a bucket's limit is in use; 0.0 where nobody knows."""
    if not bucket["limit_bytes"] or bucket["bytes"] is None:
        return 0.0
    return float(bucket["bytes"] / bucket["limit_bytes"])


def _servers_of(status: Status) -> Sequence[Status]:
    """Return the servers behind."""
    rows: Sequence[Status] = (status["store"] or {}).get("servers", ())
    return rows


def _silent(servers: Sequence[Status]) -> list[str]:
    """Return what is wrong with servers behind; of many, a line for all."""
    if len(servers) > NAMED:
        names = ", ".join(row["server"] for row in servers[:NAMED])
        return [f"{len(servers)} servers behind do not answer: {names} and others"]
    return [f"Server {row['server']} does not answer: {row['reason']}" for row in servers]


def render_page(status: Status, not_ready: str, history: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        status: As ``kvtls status`` has it.
        not_ready: Why clients are not served, ``""`` when they are.
        history: As `kvproto.ops.history.History.report` has it.
    """
    service = status["service"]
    found = findings(status, not_ready)
    mood = "bad" if not_ready else "warn" if found else "good"
    headline = {
        "good": "All is well",
        "warn": "Serves, and needs attention",
        "bad": "Not serving clients",
    }[mood]
    if service["state"] in {"draining", "drained", "stopping"}:
        headline = f"Not serving clients: {service['state']}"
    samples = history["samples"]
    parts = [
        f'<p id="state" class="{mood}" role="status"><strong>{_t(headline)}</strong>',
        (
            f"<span>kvtls {_t(service['version'])}, mode {_t(service['mode'])}, up "
            f"{_t(span(service['uptime_s']))}, process {_t(service['pid'])}</span></p>"
        ),
        _facts(status, samples),
        _attention(found),
        _section("Last quarter of an hour", curves(samples)),
        _listeners(status),
        _buckets(status),
        _servers(status),
        _nodes(status),
        _credentials(status["generation"]),
        _last(status),
    ]
    return framed(f"kvtls: {_t(headline)}", "\n".join(filter(None, parts)))


def _ends_soon(generation: Status) -> bool:
    """Return whether the certificate has too little of its life left."""
    begin, end = (
        datetime.fromisoformat(generation[name]).timestamp() for name in ("not_before", "not_after")
    )
    return is_ending(generation["expires_in_s"], end - begin, SOON)


def _facts(status: Status, samples: Sequence[Status]) -> str:
    """Return the few numbers that tell whether something is near its end."""
    limits, generation = status["limits"]["connections"], status["generation"]
    used, limit = limits["used"], limits["limit"]
    rows = [
        ("Requests a second", f"{samples[-1]['requests_per_s']:,.0f}" if samples else "-", ""),
        (
            "Connections",
            f"{used:,} of {limit:,}" if limit else f"{used:,}",
            "warn" if limit and used >= NEARLY_FULL * limit else "",
        ),
    ]
    if generation is not None:
        left = generation["expires_in_s"]
        mood = "bad" if left <= 0 else "warn" if _ends_soon(generation) else ""
        rows.append(("Certificate", "expired" if left <= 0 else f"{span(left)} left", mood))
    limited = [row for row in status["buckets"] if row["limit_bytes"]]
    if limited:
        full = max(map(_fill, limited))
        rows.append(("Fullest bucket", f"{full:.0%}", "warn" if full >= NEARLY_FULL else ""))
    servers = _servers_of(status)
    if servers:
        up = sum(bool(row["up"]) for row in servers)
        rows.append(
            ("Servers behind", f"{up} of {len(servers)} up", "" if up == len(servers) else "bad")
        )
    listed = "".join(
        f'<div class="{mood}"><dt>{_t(name)}</dt><dd>{_t(value)}</dd></div>'
        for name, value, mood in rows
    )
    return f'<dl class="facts" aria-label="In short">{listed}</dl>'


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


def _table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    bad: Callable[[int], object] = lambda number: False,
) -> str:
    """Return a table.

    Args:
        caption: What it is called.
        head: Names of the columns; one that starts with ``>`` holds numbers.
        rows: Cells.
        bad: Called with the number of a row; whether it needs attention.
    """
    kinds = [' class="number"' if name.startswith(">") else "" for name in head]
    cells = "".join(
        f'<th scope="col"{kind}>{_t(name.lstrip(">"))}</th>'
        for name, kind in zip(head, kinds, strict=True)
    )
    body = "".join(
        f'<tr{BAD_ROW if bad(number) else ""}><th scope="row"{_kind(row[0])}>{_t(row[0])}</th>'
        + "".join(
            f"<td{kind or _kind(cell)}>{_t(cell)}</td>"
            for cell, kind in zip(row[1:], kinds[1:], strict=True)
        )
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="wide" role="group" tabindex="0" aria-label="{_t(caption)}"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _kind(cell: object) -> str:
    """Return the class of a cell whose text may be broken anywhere."""
    return LONG if len(str(cell)) > LONGEST else ""


def _listeners(status: Status) -> str:
    """Return the listeners, those that have trouble first."""
    found = sorted(status["listeners"], key=lambda row: not row["error"])
    rows = [
        (
            row["name"],
            row["address"] or "-",
            "retrying" if row["retry_in_s"] is not None else row["state"],
            sum(row["connections"].values()),
            row["restarts"],
        )
        for row in found
    ]
    head = ("Listener", "Address", "State", ">Connections", ">Restarts")
    return _section(
        "Listeners", _table("Listeners", head, rows, lambda number: found[number]["error"])
    )


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
        for row in status["buckets"]
    ]
    if not rows:
        return ""
    head = ("Bucket", ">Documents", ">In use", ">Limit", ">Evicted")
    full = [_fill(row) >= NEARLY_FULL for row in status["buckets"]]
    url = "" if _servers_of(status) else (status["store"] or {}).get("url")
    where = f'<p class="where">Values are in {_t(url)}</p>' if url else ""
    return _section("Store", where + _table("Store", head, rows, full.__getitem__))


def _servers(status: Status) -> str:
    """Return the servers behind, those that do not answer first."""
    servers = sorted(_servers_of(status), key=lambda row: bool(row["up"]))
    rows = [
        (
            row["server"],
            "up" if row["up"] else f"down: {row['reason']}",
            ", ".join(f"{number:,} {reason}" for reason, number in row["errors"].items()) or "none",
        )
        for row in servers
    ]
    if not rows:
        return ""
    head = ("Server", "State", "Errors so far")
    return _section(
        "Servers behind",
        _table("Servers behind", head, rows, lambda number: not servers[number]["up"]),
    )


def _nodes(status: Status) -> str:
    """Return the links to other nodes, and the nodes that are called in vain."""
    nodes = status.get("nodes")
    if nodes is None:
        return ""
    rows = [
        (row["node"] or "-", row["direction"], row["state"], span(row["age_s"]))
        for row in nodes["links"]
    ]
    linked = len(rows)
    rows += [
        (row["node"], "out", row["state"], "-")
        for row in nodes["connectors"]
        if row["state"] != "linked"
    ]
    head = ("Node", "Way", "State", ">Age")
    return _section("Node links", _table("Node links", head, rows, lambda number: number >= linked))


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
