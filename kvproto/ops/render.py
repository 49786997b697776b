"""Answers of the control socket as lines for people, at most 80 columns wide.

Pure functions from the documented values to text.  What comes from outside (user names,
reasons) is shown with its control characters spelled out, so that no peer can write to an
operator's terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kvproto.base.escape import printable

__all__ = ["WIDTH", "render", "span"]

WIDTH = 80

LABELS = {"deadline_expired": "timed out"}
"""Names of counters that do not fit."""

BARE_ERROR = frozenset({"protocol", "id", "ok", "error"})
"""Fields of an answer that has nothing to tell but its error."""

Answer = Mapping[str, Any]


def render(command: str, answer: Answer) -> str:
    """Return an answer as text, newline at the end.

    Args:
        command: What was asked.
        answer: What was answered; it may tell of a failure, in the words of the command.
    """
    error = answer.get("error")
    if error is not None and set(answer) <= BARE_ERROR:
        return f"kvtls: {command}: {printable(error['message'])}\n"
    lines = [_started(command)] if answer.get("started") else _RENDERERS[command](answer)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _started(command: str) -> str:
    return f"{command}: begun; the log and 'kvtls status' tell how it ends (or use --wait)"


# --- pieces ---------------------------------------------------------------------------------


def _shortened(text: str, width: int) -> str:
    """Shorten text to a width, in its middle: both ends of an address tell something."""
    if len(text) <= width:
        return text
    front = (width - 2) // 2
    return f"{text[:front]}..{text[front + 2 - width :]}"


def span(seconds: float | None) -> str:
    """Return a duration in one or two units: ``4.2s``, ``3m10s``, ``5h02m``, ``12d4h``."""
    if seconds is None:
        return "-"
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    if seconds < 9.95:
        return f"{sign}{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{sign}{whole}s"
    for small, large, size, digits in (
        ("s", "m", 60, 2),
        ("m", "h", 3600, 2),
        ("h", "d", 86400, 0),
    ):
        if whole < size * (24 if large == "h" else 60) or large == "d":
            rest = whole % size // (size // (24 if large == "d" else 60))
            return f"{sign}{whole // size}{large}{rest:0{digits}}{small}"
    raise AssertionError("days take all that is left")


def _moment(text: str | None) -> str:
    """Return a timestamp to the minute, for people."""
    return "-" if text is None else text[:16].replace("T", " ")


def _field(label: str, value: object) -> list[str]:
    """Return ``label  value``, wrapped under the value, which begins in column 15.

    A SHA-256 fits on the line.
    """
    start = f"  {printable(label):<12} "
    return textwrap.wrap(
        printable(str(value)),
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * 15,
        break_on_hyphens=False,
    ) or [start]


def _table(
    head: Sequence[str], rows: Iterable[Sequence[object]], least: Mapping[str, int]
) -> list[str]:
    """Return a table that fits.

    Args:
        head: Names of the columns; one that starts with ``>`` is aligned to the right.
        rows: Cells.
        least: Columns that may be made narrower, and how narrow.
    """
    cells = [
        [name.lstrip(">") for name in head],
        *([printable(str(cell)) for cell in row] for row in rows),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    spare = {i: widths[i] - least[name] for i, name in enumerate(head) if name in least}
    for _ in range(sum(widths) + len(widths) - 1 - WIDTH):
        widest = max(spare, key=spare.__getitem__)
        widths[widest] -= 1
        spare[widest] -= 1
    sides = [">" if name.startswith(">") else "<" for name in head]
    return [
        " ".join(
            f"{_shortened(cell, width):{side}{width}}"
            for cell, width, side in zip(row, widths, sides, strict=True)
        )
        for row in cells
    ]


def _many(number: int, what: str) -> str:
    """Return ``1 CA``, ``2 CAs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _counts(counts: Mapping[str, int]) -> str:
    """Return ``3 owned, 1 handshaking``, zeros left out."""
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "0"


# --- commands -------------------------------------------------------------------------------


def _status(answer: Answer) -> list[str]:
    """Show the service from the outside in."""
    service = answer["service"]
    lines = textwrap.wrap(
        f"kvtls {service['version']} is {service['state']}: pid {service['pid']}, "
        f"up {span(service['uptime_s'])}, mode {service['mode']}",
        WIDTH,
    )
    if not service["ready"]:
        lines += textwrap.wrap(printable(f"CLIENTS ARE NOT SERVED: {service['reason']}"), WIDTH)
    lines.append("")
    lines += _generation(answer["generation"])
    lines += ["", "listeners"]
    lines += _listeners(answer["listeners"])
    if "nodes" in answer:
        lines += ["", *_nodes(answer["nodes"])]
    if answer["buckets"]:
        lines += ["", "store", *_store(answer)]
    lines += ["", "connections", *_limits(answer)]
    lines += ["", "since the start", *_counters(answer["counters"])]
    return lines


def _generation(generation: Answer | None) -> list[str]:
    """Show what certificate is served, and whether that is what should be."""
    if generation is None:
        return ["no certificate is served"]
    left = generation["expires_in_s"]
    expiry = f"{span(left)} left" if left > 0 else "EXPIRED"
    lines = [f"generation {generation['number']}, since {_moment(generation['since'])} UTC"]
    lines += _field("sha256", generation["fingerprint_sha256"])
    lines += _field(
        "valid",
        f"{_moment(generation['not_before'])} to {_moment(generation['not_after'])} UTC, {expiry}",
    )
    lines += _field("names", ", ".join(generation["names"]) or "-")
    lines += _field(
        "clients",
        f"{_many(generation['client_cas'], 'CA')}, {_many(generation['crls'], 'CRL')}"
        if generation["client_cas"]
        else "no certificate asked for",
    )
    lines += _field(
        "disk",
        "DIFFERS from what is served: 'kvtls reload --wait' says why or serves it"
        if generation["disk_differs"]
        else "same as served",
    )
    if generation["rollback_to"] is not None:
        lines += _field("rollback", f"to the credentials of generation {generation['rollback_to']}")
    for warning in generation["warnings"]:
        lines += _field("warning", warning)
    verdict = generation["last_verdict"]
    if verdict is not None:
        lines += _field(
            "last change",
            f"{verdict['action']} at {_moment(verdict['at'])} UTC: {_outcome_of(verdict)}",
        )
    return lines


def _outcome_of(verdict: Answer) -> str:
    """Return a verdict in one sentence."""
    if not verdict["ok"]:
        return f"FAILED ({verdict['stage']}): {verdict['reason']}"
    if not verdict["changed"]:
        return f"nothing new, generation {verdict['generation']} serves on"
    return f"generation {verdict['generation']} serves"


def _listeners(listeners: Sequence[Answer]) -> list[str]:
    """Show the listeners, with what is wrong below each."""
    rows = [
        (
            listener["name"],
            listener["address"],
            "retrying" if listener["retry_in_s"] is not None else listener["state"],
            listener["on_rotate"],
            sum(listener["connections"].values()),
        )
        for listener in listeners
    ]
    table = _table(
        ("NAME", "ADDRESS", "STATE", "ON ROTATE", ">CONNS"), rows, {"NAME": 8, "ADDRESS": 21}
    )
    lines = table[:1]
    for listener, row in zip(listeners, table[1:], strict=True):
        lines.append(row)
        if listener["error"]:
            again = listener["retry_in_s"]
            when = "" if again is None else f"; attempt {listener['attempts'] + 1} in {span(again)}"
            lines += textwrap.wrap(
                printable(f"{listener['error']}{when}"),
                WIDTH,
                initial_indent="    ",
                subsequent_indent="    ",
            )
    return lines


def _store(answer: Answer) -> list[str]:
    """Show where values live, and how full each bucket is."""
    lines = []
    store = answer["store"]
    if store is not None and store.get("url"):
        state = "" if store.get("ready", True) else f", NOT READY: {store.get('reason', '')}"
        lines += _field("values in", f"{store['url']}{state}")
    rows = [
        (
            bucket["name"],
            "unknown" if bucket["items"] is None else bucket["items"],
            _mebibytes(bucket["bytes"]),
            _mebibytes(bucket["limit_bytes"]),
            bucket["evictions"],
        )
        for bucket in answer["buckets"]
    ]
    head = ("BUCKET", ">ITEMS", ">MiB", ">OF MiB", ">EVICTED")
    return lines + _table(head, rows, {"BUCKET": 8})


def _mebibytes(number: int | None) -> str:
    return "-" if number is None else f"{number / 2**20:.1f}"


def _nodes(nodes: Answer) -> list[str]:
    """Show the node part: its certificate, epmd, links, and who is called in vain."""
    lines = [f"node {printable(nodes['name'])}"]
    generation = nodes["generation"]
    lines += _field(
        "certificate",
        f"generation {generation['number']}, {span(generation['expires_in_s'])} left"
        + (", files DIFFER" if generation["disk_differs"] else ""),
    )
    lines += _field("processes", ", ".join(nodes["processes"]))
    epmd = nodes["epmd"]
    if epmd is not None:
        said = (
            f"knows {epmd['name']} on port {epmd['port']}"
            if epmd["registered"]
            else f"NOT REGISTERED {epmd['problem']}"
        )
        lines += _field("epmd", said)
    if not nodes["last_restart"]["ok"]:
        lines += _field("missing", ", ".join(nodes["last_restart"]["missing"]) or "a listener")
    rows = [
        (link["node"] or "-", link["direction"], link["state"], link["generation"],
         span(link["age_s"]))
        for link in nodes["links"]
    ]  # fmt: skip
    rows += [
        (connector["node"], "out", connector["state"], "-", "-")
        for connector in nodes["connectors"]
        if connector["state"] not in ("linked", "dialling")
    ]
    if rows:
        lines += _table(("LINK", "WAY", "STATE", ">GEN", ">AGE"), rows, {"LINK": 20})
    for connector in nodes["connectors"]:
        if connector["problem"] and connector["state"] != "linked":
            lines += _field("problem", f"{connector['node']}: {connector['problem']}")
    return lines


def _limits(answer: Answer) -> list[str]:
    """Show how much room is left."""
    limits = answer["limits"]
    lines = []
    for label in ("connections", "unauthenticated"):
        used, limit = limits[label]["used"], limits[label]["limit"]
        name = "verified" if label == "connections" else "no login"
        lines += _field(name, f"{used} of {limit or 'any number'}")
    if limits["per_peer"]["limit"]:
        lines += _field("per address", f"at most {limits['per_peer']['limit']}")
    lines += _field("by state", _counts(answer["connections"]["by_state"]))
    return lines


def _counters(counters: Answer) -> list[str]:
    """Show the totals."""
    lines = []
    for name, value in counters.items():
        shown = _counts(value) if isinstance(value, Mapping) else value
        lines += _field(LABELS.get(name, name.replace("_", " ")), shown)
    return lines


def _connections(answer: Answer) -> list[str]:
    """Show one line for each connection."""
    rows = [
        (
            row["id"],
            row["peer"],
            row["listener"],
            row["generation"],
            row["state"],
            span(row["since_s"]),
            span(row["deadline_in_s"]),
            row["tls"].removeprefix("TLSv"),
            "-" if row["user"] is None else row["user"] or "anonymous",
        )
        for row in answer["connections"]
    ]
    head = (">ID", "PEER", "LISTENER", ">GEN", "STATE", ">SINCE", ">LEFT", ">TLS", "USER")
    lines = _table(head, rows, {"PEER": 21, "LISTENER": 7, "USER": 8}) if rows else []
    hidden = answer["total"] - answer["shown"]
    more = f", the oldest {answer['shown']} shown (--limit 0 shows all)" if hidden else ""
    return [*lines, f"{_many(answer['total'], 'connection')}{more}"]


def _verdict(answer: Answer) -> list[str]:
    """Show what became of a reload or rollback."""
    lines = textwrap.wrap(printable(f"{answer['action']}: {_outcome_of(answer)}"), WIDTH)
    if not answer["ok"]:
        lines += _field("serving", f"generation {answer['generation']}")
    lines += _field("sha256", answer["fingerprint_sha256"])
    lines += _field("valid until", f"{_moment(answer['not_after'])} UTC")
    for warning in answer["warnings"]:
        lines += _field("warning", warning)
    for listener in answer["listeners"]:
        lines += _field(listener["name"], _policy_result(listener["detail"]))
    if "store" in answer:
        lines += _field("store", answer["store"]["reason"] or "unchanged")
    if "nodes" in answer:
        lines += _field("nodes", _outcome_of(answer["nodes"]))
    if "configuration" in answer:
        lines += _configuration(answer["configuration"])
    return lines


def _configuration(found: Answer) -> list[str]:
    """Show what was taken over of the file of ``--config``."""
    if not found["ok"]:
        return _field("config", f"FAILED, it stays as it is: {found['reason']}")
    lines = _field("config", f"changed: {', '.join(found['changed']) or 'nothing'}")
    if found["restart"]:
        lines += _field("restart for", ", ".join(found["restart"]))
    return lines


def _policy_result(detail: Any) -> str:
    """Return what a listener's policy did to live connections."""
    if isinstance(detail, Mapping):
        ended, of = detail["ended"], detail["connections"]
        return f"{detail['policy']}: {ended} of {of} older connections ended"
    return "done" if detail in (None, "") else str(detail)


def _restart(answer: Answer) -> list[str]:
    """Show which listeners are back."""
    lines = []
    for listener in answer["listeners"]:
        lines += _field(
            listener["name"], "restarted" if listener["ok"] else f"FAILED: {listener['reason']}"
        )
    return lines


def _drain(answer: Answer) -> list[str]:
    """Show how many connections went in peace."""
    ended = _many(answer["drained"], "connection")
    return [
        f"drained: {ended} ended in peace, {answer['aborted']} cut off",
        "'kvtls restart all' takes connections again, 'kvtls stop' ends the process",
    ]


def _config(answer: Answer) -> list[str]:
    """Show each option on a line; what is not set is left out."""
    rows = [
        (row["name"], ", ".join(map(_option_value, many)), _source(row))
        for row in answer["options"]
        if (many := row["value"] if isinstance(row["value"], list) else [row["value"]])
        and many != [None]
    ]
    return _table(("OPTION", "VALUE", "FROM"), rows, {"VALUE": 20, "FROM": 16})


def _source(row: Answer) -> str:
    """Return where a value comes from, and that a restart would bring another one."""
    if "pending" not in row:
        return str(row["source"])
    pending = row["pending"] if isinstance(row["pending"], list) else [row["pending"]]
    shown = ", ".join("nothing" if one is None else _option_value(one) for one in pending)
    return f"{row['source']}; {shown} after a restart"


def _option_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flush(answer: Answer) -> list[str]:
    """Return a line on what is empty now."""
    return [f"bucket {printable(answer['bucket'])} is empty"]


def _backup(answer: Answer) -> list[str]:
    """Return a line on what has been written."""
    return [f"{answer['documents']} documents are in {printable(answer['file'])}"]


def _restore(answer: Answer) -> list[str]:
    """Return a line on what has been stored."""
    lines = [f"{answer['documents']} documents are back from {printable(answer['file'])}"]
    return lines + ([printable(answer["reason"])] if answer.get("reason") else [])


def _seed(answer: Answer) -> list[str]:
    """Return a line on what has been stored."""
    return [f"{answer['documents']} documents of {printable(answer['file'])} are stored"]


def _fault(answer: Answer) -> list[str]:
    """Return a line on what was arranged."""
    return [f"{printable(answer['kind'])}: arranged"]


def _address(answer: Answer) -> list[str]:
    """Show an address alone, for use in a script."""
    return [printable(answer["address"])]


def _stop(answer: Answer) -> list[str]:
    """Show what is going to end, or has."""
    known = {True: "has ended", False: "is still there; it may yet end", None: "is stopping"}
    return [f"process {answer['pid']} {known[answer.get('gone')]}"]


_RENDERERS: dict[str, Callable[[Answer], list[str]]] = {
    "status": _status,
    "connections": _connections,
    "reload": _verdict,
    "rollback": _verdict,
    "restart": _restart,
    "drain": _drain,
    "config": _config,
    "flush": _flush,
    "backup": _backup,
    "restore": _restore,
    "seed": _seed,
    "fault": _fault,
    "address": _address,
    "stop": _stop,
}
