"""Answers of the control socket as text for people.

Pure functions from the documented values to pieces, which `kvproto.ops.layout` lays out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvproto.base.escape import printable
from kvproto.ops.layout import WIDTH, Field, Piece, Row, Style, Table, Text, lay_out

__all__ = ["render", "span", "top_pieces"]

LABELS = {"deadline_expired": "timed out"}
"""Names of counters that do not fit."""

BARE_ERROR = frozenset({"protocol", "id", "ok", "error"})
"""Fields of an answer that has nothing to tell but its error."""

Answer = Mapping[str, Any]


def render(command: str, answer: Answer, width: int = WIDTH, *, colours: bool = False) -> str:
    """Return an answer as text, newline at the end.

    Args:
        command: What was asked.
        answer: What was answered; it may tell of a failure, in the words of the command.
        width: Columns.
        colours: Whether to say by colours what matters.
    """
    error = answer.get("error")
    if error is not None and set(answer) <= BARE_ERROR:
        # One line, however long: it is the one that ends in logs of scripts.
        return f"kvtls: {command}: {printable(error['message'])}\n"
    started = answer.get("started")
    pieces = [Text(_started(command))] if started else _RENDERERS[command](answer)
    return "\n".join(lay_out(pieces, width, colours=colours)) + "\n"


def _started(command: str) -> str:
    return f"{command}: begun; the log and 'kvtls status' tell how it ends (or use --wait)"


# --- pieces ---------------------------------------------------------------------------------


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


def _many(number: int, what: str) -> str:
    """Return ``1 CA``, ``2 CAs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _counts(counts: Mapping[str, int]) -> str:
    """Return ``3 owned, 1 handshaking``, zeros left out."""
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "0"


# --- commands -------------------------------------------------------------------------------


def _status(answer: Answer) -> list[Piece]:
    """Show the service from the outside in."""
    service = answer["service"]
    pieces: list[Piece] = [
        Text(
            f"kvtls {service['version']} is {service['state']}: pid {service['pid']}, "
            f"up {span(service['uptime_s'])}, mode {service['mode']}",
            Style.GOOD if service["ready"] else Style.HEAD,
        )
    ]
    if not service["ready"]:
        pieces.append(Text(f"CLIENTS ARE NOT SERVED: {service['reason']}", Style.BAD))
    pieces += [Text(), *_generation(answer["generation"])]
    pieces += [Text(), Text("listeners", Style.HEAD), _listeners(answer["listeners"])]
    if "nodes" in answer:
        pieces += [Text(), *_nodes(answer["nodes"])]
    if answer["buckets"]:
        pieces += [Text(), Text("store", Style.HEAD), *_store(answer)]
    pieces += [Text(), Text("connections", Style.HEAD), *_limits(answer)]
    return [*pieces, Text(), Text("since the start", Style.HEAD), *_counters(answer["counters"])]


def _generation(generation: Answer | None) -> list[Piece]:
    """Show what certificate is served, and whether that is what should be."""
    if generation is None:
        return [Text("no certificate is served", Style.BAD)]
    left = generation["expires_in_s"]
    expiry = f"{span(left)} left" if left > 0 else "EXPIRED"
    differs = generation["disk_differs"]
    pieces: list[Piece] = [
        Text(
            f"generation {generation['number']}, since {_moment(generation['since'])} UTC",
            Style.HEAD,
        ),
        Field("sha256", generation["fingerprint_sha256"]),
        Field(
            "valid",
            f"{_moment(generation['not_before'])} to {_moment(generation['not_after'])} UTC, "
            f"{expiry}",
            Style.PLAIN if left > 0 else Style.BAD,
        ),
        Field("names", ", ".join(generation["names"]) or "-"),
        Field(
            "clients",
            f"{_many(generation['client_cas'], 'CA')}, {_many(generation['crls'], 'CRL')}"
            if generation["client_cas"]
            else "no certificate asked for",
        ),
        Field(
            "disk",
            "DIFFERS from what is served: 'kvtls reload --wait' says why or serves it"
            if differs
            else "same as served",
            Style.WARN if differs else Style.PLAIN,
        ),
    ]
    if generation["rollback_to"] is not None:
        pieces.append(
            Field("rollback", f"to the credentials of generation {generation['rollback_to']}")
        )
    pieces += [Field("warning", warning, Style.WARN) for warning in generation["warnings"]]
    verdict = generation["last_verdict"]
    if verdict is not None:
        said = f"{verdict['action']} at {_moment(verdict['at'])} UTC: {_outcome_of(verdict)}"
        pieces.append(Field("last change", said, _style_of(verdict)))
    return pieces


def _style_of(verdict: Answer) -> Style:
    return Style.PLAIN if verdict["ok"] else Style.BAD


def _outcome_of(verdict: Answer) -> str:
    """Return a verdict in one sentence."""
    if not verdict["ok"]:
        return f"FAILED ({verdict['stage']}): {verdict['reason']}"
    if not verdict["changed"]:
        return f"nothing new, generation {verdict['generation']} serves on"
    return f"generation {verdict['generation']} serves"


def _listeners(listeners: Sequence[Answer]) -> Table:
    """Show the listeners, with what is wrong below each."""
    rows = []
    for listener in listeners:
        again, note = listener["retry_in_s"], ""
        if listener["error"]:
            when = "" if again is None else f"; attempt {listener['attempts'] + 1} in {span(again)}"
            note = f"{listener['error']}{when}"
        cells = (
            listener["name"],
            listener["address"],
            listener["state"] if again is None else "retrying",
            listener["on_rotate"],
            sum(listener["connections"].values()),
        )
        rows.append(Row(cells, Style.BAD if note else Style.PLAIN, note))
    head = ("NAME", "ADDRESS", "STATE", "ON ROTATE", ">CONNS")
    return Table(head, rows, {"NAME": 8, "ADDRESS": 21})


def _store(answer: Answer) -> list[Piece]:
    """Show where values live, and how full each bucket is."""
    pieces: list[Piece] = []
    store = answer["store"]
    if store is not None and store.get("url"):
        ready = store.get("ready", True)
        state = "" if ready else f", NOT READY: {store.get('reason', '')}"
        pieces.append(
            Field("values in", f"{store['url']}{state}", Style.PLAIN if ready else Style.BAD)
        )
        pieces += [
            Field("not writing", f"bucket {name}: {bucket['fault']}", Style.BAD)
            for name, bucket in store.get("buckets", {}).items()
            if bucket.get("fault")
        ]
    rows = [
        Row(
            (
                bucket["name"],
                "unknown" if bucket["items"] is None else bucket["items"],
                _mebibytes(bucket["bytes"]),
                _mebibytes(bucket["limit_bytes"]),
                bucket["evictions"],
            )
        )
        for bucket in answer["buckets"]
    ]
    head = ("BUCKET", ">ITEMS", ">MiB", ">OF MiB", ">EVICTED")
    pieces.append(Table(head, rows, {"BUCKET": 8}))
    servers = (store or {}).get("servers")
    return [*pieces, Text(), _servers(servers)] if servers else pieces


def _servers(servers: Sequence[Answer]) -> Table:
    """Show the servers behind, with what is wrong below each."""
    rows = [
        Row(
            (
                server["server"],
                ", ".join(filter(None, ("up", server.get("protocol")))) if server["up"] else "DOWN",
                ", ".join(f"{number} {reason}" for reason, number in server["errors"].items())
                or "none",
            ),
            Style.PLAIN if server["up"] else Style.BAD,
            server["reason"],
        )
        for server in servers
    ]
    return Table(("SERVER", "STATE", "ERRORS"), rows, {"SERVER": 21, "ERRORS": 12})


def _mebibytes(number: int | None) -> str:
    return "-" if number is None else f"{number / 2**20:.1f}"


def _nodes(nodes: Answer) -> list[Piece]:
    """Show the node part: its certificate, epmd, links, and who is called in vain."""
    generation = nodes["generation"]
    differs = generation["disk_differs"]
    pieces: list[Piece] = [
        Text(f"node {nodes['name']}", Style.HEAD),
        Field(
            "certificate",
            f"generation {generation['number']}, {span(generation['expires_in_s'])} left"
            + (", files DIFFER" if differs else ""),
            Style.WARN if differs else Style.PLAIN,
        ),
        Field("processes", ", ".join(nodes["processes"])),
    ]
    epmd = nodes["epmd"]
    if epmd is not None:
        pieces.append(
            Field("epmd", f"knows {epmd['name']} on port {epmd['port']}")
            if epmd["registered"]
            else Field("epmd", f"NOT REGISTERED {epmd['problem']}", Style.BAD)
        )
    if not nodes["last_restart"]["ok"]:
        missing = ", ".join(nodes["last_restart"]["missing"]) or "a listener"
        pieces.append(Field("missing", missing, Style.BAD))
    rows = [
        Row((link["node"] or "-", link["direction"], link["state"], link["generation"],
             span(link["age_s"])))
        for link in nodes["links"]
    ]  # fmt: skip
    rows += [
        Row((connector["node"], "out", connector["state"], "-", "-"), Style.WARN)
        for connector in nodes["connectors"]
        if connector["state"] not in ("linked", "dialling")
    ]
    if rows:
        pieces.append(Table(("LINK", "WAY", "STATE", ">GEN", ">AGE"), rows, {"LINK": 20}))
    pieces += [
        Field("problem", f"{connector['node']}: {connector['problem']}", Style.BAD)
        for connector in nodes["connectors"]
        if connector["problem"] and connector["state"] != "linked"
    ]
    return pieces


def _limits(answer: Answer) -> list[Piece]:
    """Show how much room is left."""
    limits = answer["limits"]
    pieces: list[Piece] = []
    for label, name in (("connections", "verified"), ("unauthenticated", "no login")):
        used, limit = limits[label]["used"], limits[label]["limit"]
        full = bool(limit) and used >= limit
        style = Style.WARN if full else Style.PLAIN
        pieces.append(Field(name, f"{used} of {limit or 'any number'}", style))
    if limits["per_peer"]["limit"]:
        pieces.append(Field("per address", f"at most {limits['per_peer']['limit']}"))
    return [*pieces, Field("by state", _counts(answer["connections"]["by_state"]))]


def _counters(counters: Answer) -> list[Piece]:
    """Show the totals."""
    return [
        Field(
            LABELS.get(name, name.replace("_", " ")),
            _counts(value) if isinstance(value, Mapping) else value,
        )
        for name, value in counters.items()
    ]


def _connections(answer: Answer) -> list[Piece]:
    """Show one line for each connection."""
    rows = [
        Row(
            (
                row["id"],
                row["peer"],
                row["listener"],
                row["generation"],
                row["state"],
                span(row["since_s"]),
                span(row["deadline_in_s"]),
                row["tls"].removeprefix("TLSv"),
                _user(row),
            )
        )
        for row in answer["connections"]
    ]
    head = (">ID", "PEER", "LISTENER", ">GEN", "STATE", ">SINCE", ">LEFT", ">TLS", "USER")
    table = Table(head, rows, {"PEER": 21, "LISTENER": 7, "USER": 8})
    hidden = answer["total"] - answer["shown"]
    more = f", the oldest {answer['shown']} shown (--limit 0 shows all)" if hidden else ""
    total = Text(f"{_many(answer['total'], 'connection')}{more}", Style.HEAD)
    return [table, total] if rows else [total]


def top_pieces(answer: Answer) -> list[Piece]:
    """Show what each connection moves, the heaviest first."""
    rows = [
        Row(
            (
                row["id"],
                row["peer"],
                row["listener"],
                _user(row),
                span(row["age_s"]),
                _bytes(row["bytes_in_per_s"]),
                _bytes(row["bytes_out_per_s"]),
                _bytes(row["bytes_in"]),
                _bytes(row["bytes_out"]),
            )
        )
        for row in answer["connections"]
    ]
    head = (">ID", "PEER", "LISTENER", "USER", ">AGE", ">IN/s", ">OUT/s", ">IN", ">OUT")
    table = Table(
        head, rows, {"PEER": 21, "USER": 8}, dispensable=("LISTENER", "AGE", "ID", "OUT", "IN")
    )
    hidden = answer["total"] - answer["shown"]
    total = Text(
        f"{_many(answer['total'], 'connection')}{f', {hidden} not shown' if hidden else ''}: "
        f"{answer['requests_per_s']:,.0f} requests/s, in {_bytes(answer['bytes_in_per_s'])}/s, "
        f"out {_bytes(answer['bytes_out_per_s'])}/s",
        Style.HEAD,
    )
    return [total, table] if rows else [total]


def _bytes(number: int | None) -> str:
    """Return an amount of bytes in at most five characters."""
    if number is None:
        return "-"
    amount = float(number)
    for unit in ("", "K", "M", "G", "T"):
        if amount < 999.5:
            return f"{amount:.{0 if not unit or amount >= 99.95 else 1}f}{unit}"
        amount /= 1024
    return f"{amount:.0f}P"


def _user(row: Answer) -> str:
    """Return who a connection has logged in as."""
    return "-" if row["user"] is None else row["user"] or "anonymous"


def _verdict(answer: Answer) -> list[Piece]:
    """Show what became of a reload or rollback."""
    pieces: list[Piece] = [
        Text(
            f"{answer['action']}: {_outcome_of(answer)}", Style.GOOD if answer["ok"] else Style.BAD
        )
    ]
    if not answer["ok"]:
        pieces.append(Field("serving", f"generation {answer['generation']}"))
    pieces += [
        Field("sha256", answer["fingerprint_sha256"]),
        Field("valid until", f"{_moment(answer['not_after'])} UTC"),
    ]
    pieces += [Field("warning", warning, Style.WARN) for warning in answer["warnings"]]
    pieces += [
        Field(listener["name"], _policy_result(listener["detail"]))
        for listener in answer["listeners"]
    ]
    if "store" in answer:
        pieces.append(
            Field("store", answer["store"]["reason"] or "unchanged", _style_of(answer["store"]))
        )
    if "nodes" in answer:
        pieces.append(Field("nodes", _outcome_of(answer["nodes"]), _style_of(answer["nodes"])))
    if "configuration" in answer:
        pieces += _configuration(answer)
    return pieces


def _configuration(answer: Answer) -> list[Piece]:
    """Show what was taken over of the file of ``--config``."""
    found = answer["configuration"]
    if not found["ok"]:
        said = answer.get("stage") == "configuration"
        why = "" if said else f": {found['reason']}"
        return [Field("config", f"stays as it is{why}", Style.BAD)]
    pieces: list[Piece] = [Field("config", f"changed: {', '.join(found['changed']) or 'nothing'}")]
    if found["restart"]:
        pieces.append(Field("restart for", ", ".join(found["restart"]), Style.WARN))
    return pieces


def _policy_result(detail: Any) -> str:
    """Return what a listener's policy did to live connections."""
    if isinstance(detail, Mapping):
        ended, of = detail["ended"], detail["connections"]
        return f"{detail['policy']}: {ended} of {of} older connections ended"
    return "done" if detail in (None, "") else str(detail)


def _restart(answer: Answer) -> list[Piece]:
    """Show which listeners are back."""
    return [
        Field(listener["name"], "restarted")
        if listener["ok"]
        else Field(listener["name"], f"FAILED: {listener['reason']}", Style.BAD)
        for listener in answer["listeners"]
    ]


def _drain(answer: Answer) -> list[Piece]:
    """Show how many connections went in peace."""
    ended = _many(answer["drained"], "connection")
    return [
        Text(f"drained: {ended} ended in peace, {answer['aborted']} cut off"),
        Text("'kvtls restart all' takes connections again, 'kvtls stop' ends the process"),
    ]


def _config(answer: Answer) -> list[Piece]:
    """Show each option on a line; what is not set is left out."""
    rows = [
        Row((row["name"], ", ".join(map(_option_value, values)), row["source"]))
        for row in answer["options"]
        if (values := row["value"] if isinstance(row["value"], list) else [row["value"]])
        and values != [None]
    ]
    pieces: list[Piece] = [Table(("OPTION", "VALUE", "FROM"), rows, {"VALUE": 20, "FROM": 16})]
    pending = [row for row in answer["options"] if "pending" in row]
    if pending:
        pieces.append(Text("the file has other values, which take a restart:", Style.WARN))
    for row in pending:
        values = row["pending"] if isinstance(row["pending"], list) else [row["pending"]]
        shown = ", ".join("not set" if one is None else _option_value(one) for one in values)
        pieces.append(Field(row["name"], shown or "not set"))
    return pieces


def _option_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flush(answer: Answer) -> list[Piece]:
    """Return a line on what is empty now."""
    return [Text(f"bucket {answer['bucket']} is empty", whole=True)]


def _backup(answer: Answer) -> list[Piece]:
    """Return a line on what has been written."""
    return [Text(f"{answer['documents']} documents are in {answer['file']}", whole=True)]


def _restore(answer: Answer) -> list[Piece]:
    """Return a line on what has been stored."""
    pieces: list[Piece] = [
        Text(f"{answer['documents']} documents are back from {answer['file']}", whole=True)
    ]
    return pieces + ([Text(answer["reason"], Style.BAD)] if answer.get("reason") else [])


def _seed(answer: Answer) -> list[Piece]:
    """Return a line on what has been stored."""
    return [Text(f"{answer['documents']} documents of {answer['file']} are stored", whole=True)]


def _fault(answer: Answer) -> list[Piece]:
    """Return a line on what was arranged."""
    return [Text(f"{answer['kind']}: arranged")]


def _address(answer: Answer) -> list[Piece]:
    """Show an address alone, for use in a script: a Unix socket's may be long."""
    return [Text(answer["address"], whole=True)]


def _stop(answer: Answer) -> list[Piece]:
    """Show what is going to end, or has."""
    known = {True: "has ended", False: "is still there; it may yet end", None: "is stopping"}
    return [Text(f"process {answer['pid']} {known[answer.get('gone')]}")]


def _passwd(answer: Answer) -> list[Piece]:
    """Return a line on what became of a user."""
    where = "from" if answer["action"] == "removed" else "in"
    return [Text(f"{answer['action']} {answer['user']} {where} {answer['file']}", whole=True)]


_RENDERERS: dict[str, Callable[[Answer], list[Piece]]] = {
    "status": _status,
    "connections": _connections,
    "top": top_pieces,
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
    "passwd": _passwd,
}
