"""Which function serves which opcode: three tables of 256, and what framing each may come with."""

from __future__ import annotations

from kvproto.server import commands, documents
from kvproto.server.documents import Handler
from kvproto.wire.constants import LOUD, QUIET_ON_MISS, Opcode

__all__ = ["AFTER_LOGIN", "BEFORE_LOGIN", "REFUSED", "accepts_framing", "is_set"]

_LOUD: dict[int, Handler] = {
    Opcode.GET: documents.get,
    Opcode.GETK: documents.getk,
    Opcode.GAT: documents.get_and_touch,
    Opcode.GATK: documents.getk_and_touch,
    Opcode.GET_META: documents.get_meta,
    Opcode.SET: documents.storing("set", is_set=True),
    Opcode.ADD: documents.storing("add"),
    Opcode.REPLACE: documents.storing("replace"),
    Opcode.DELETE: documents.delete,
    Opcode.INCREMENT: documents.counter("increment"),
    Opcode.DECREMENT: documents.counter("decrement"),
    Opcode.APPEND: documents.append,
    Opcode.PREPEND: documents.prepend,
    Opcode.TOUCH: documents.touch,
    Opcode.GET_LOCKED: documents.get_locked,
    Opcode.UNLOCK: documents.unlock,
    Opcode.FLUSH: commands.flush,
    Opcode.STAT: commands.stat,
    Opcode.VERBOSITY: commands.verbosity,
}

_BEFORE_LOGIN: dict[int, Handler] = {
    Opcode.HELLO: commands.hello,
    Opcode.SASL_LIST: commands.sasl_list,
    Opcode.SASL_AUTH: commands.sasl_auth,
    Opcode.SASL_STEP: commands.sasl_step,
    Opcode.NOOP: commands.noop,
    Opcode.VERSION: commands.version,
    Opcode.QUIT: commands.quit_,
    Opcode.QUITQ: commands.quit_quietly,
}
"""What a stranger may ask for."""


def _table(handlers: dict[int, Handler], default: Handler) -> tuple[Handler, ...]:
    return tuple(handlers.get(opcode, default) for opcode in range(256))


def _quiet_forms(handlers: dict[int, Handler]) -> dict[int, Handler]:
    return {
        opcode: (documents.quiet_on_miss if opcode in QUIET_ON_MISS else documents.quiet)(
            handlers[loud]
        )
        for opcode, loud in LOUD.items()
        if loud in handlers
    }


AFTER_LOGIN = _table({**_LOUD, **_quiet_forms(_LOUD), **_BEFORE_LOGIN}, commands.unknown)
BEFORE_LOGIN = _table(_BEFORE_LOGIN, commands.log_in_first)
REFUSED = _table({}, commands.refuse)

_STORING = frozenset({Opcode.SET, Opcode.ADD, Opcode.REPLACE})
_MUTATIONS = _STORING | {
    Opcode.DELETE,
    Opcode.INCREMENT,
    Opcode.DECREMENT,
    Opcode.APPEND,
    Opcode.PREPEND,
}
_KEEP_EXPIRY = _MUTATIONS - {Opcode.DELETE}


def accepts_framing(opcode: int) -> tuple[bool, bool]:
    """Say whether an opcode may come with "preserve expiry", and with a durability level."""
    loud = LOUD.get(opcode, opcode)
    return loud in _KEEP_EXPIRY, loud in _MUTATIONS


def is_set(opcode: int) -> bool:
    """Say whether an opcode is SET or its quiet form."""
    return LOUD.get(opcode, opcode) == Opcode.SET
