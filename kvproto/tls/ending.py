"""Why a connection ended, for its application and its operator."""

from __future__ import annotations

from OpenSSL.SSL import Error
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.main import CONNECTION_LOST
from twisted.python.failure import Failure

from kvproto.tls.contexts import verify_failure
from kvproto.tls.machine import State, TLSMachine
from kvproto.tls.reasons import (
    BudgetExceeded,
    CloseTimeout,
    HandshakeInterrupted,
    HandshakeTimeout,
    describe_error,
    explained,
    represents_eof,
)

__all__ = ["explain_failure", "final_reason", "is_worth_a_warning"]


def final_reason(known: Failure | None, reason: Failure, *, clean: bool) -> Failure:
    """Return the reason that the application gets.

    Args:
        known: What TLS knows of it; None for nothing.
        reason: What the transport says.
        clean: Whether the handshake had ended, or TLS has ended the connection itself.
    """
    if known is not None:
        return known
    if not clean and isinstance(reason.value, (ConnectionDone, ConnectionLost)):
        return Failure(HandshakeInterrupted("the peer went away during the TLS handshake"))
    return reason


def is_worth_a_warning(error: BaseException | None, machine: TLSMachine | None) -> bool:
    """Return whether a server's operator wants to know.

    Args:
        error: The reason of ``connectionLost``.
        machine: The connection's; None where there was none.
    """
    if isinstance(error, HandshakeInterrupted):
        # Probes of load balancers connect and go without a word.
        return machine is not None and bool(machine.first_bytes)
    if isinstance(error, (HandshakeTimeout, BudgetExceeded, CloseTimeout)):
        return True
    if not isinstance(error, Error) or machine is None:
        return False
    # Without a certificate nothing else was to be expected: the program found none for
    # the name that the client asked for, and has said so.
    shown = getattr(machine.engine.connection, "get_certificate", None)
    return machine.last is not State.HANDSHAKING or (shown is not None and shown() is not None)


def explain_failure(machine: TLSMachine, stage: str) -> Failure:
    """Return why a machine has failed, in words, for the application's ``connectionLost``.

    The class stays exactly OpenSSL's: programs compare it.  The object is another: one that was
    raised keeps its frames, and with them the connection, alive for as long as the application
    keeps the reason.

    Args:
        machine: One with an `error`.
        stage: As in `kvproto.tls.reasons.explained`.
    """
    error = machine.error
    if not isinstance(error, Error):
        return Failure(error)
    if represents_eof(error):
        return Failure(CONNECTION_LOST)
    words = ""
    if machine.last is State.HANDSHAKING:
        words = verify_failure(machine.engine.connection)
    words = words or describe_error(error, machine.first_bytes, stage)
    return Failure(explained(error, words, stage))
