"""What a binary request of each opcode must look like before anybody looks at its meaning.

One table for all opcodes, and one check that is put around each handler.  memcached looks at
lengths only; Couchbase also refuses a CAS, a datatype or a partition where they mean nothing, so
that a client which believes that they do is told.

Not here: framing extras, which are `kvproto.server.opcodes`', and collection ids, which are
`kvproto.wire.collections`'.

Source: Couchbase kv_engine ``daemon/mcbp_validators.cc``; memcached ``proto_bin.c``.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvproto.server.client import BinaryClient
from kvproto.server.documents import Handler
from kvproto.server.replies import Reply
from kvproto.wire.constants import MAX_KEY, Datatype, Opcode, Status
from kvproto.wire.frames import Request

__all__ = ["SHAPES", "Shape", "misshapen", "shaped"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What may be in a request.

    Attributes:
        extras: Lengths in bytes that its extras may have.
        key: Whether there must be a key; None for either.
        value: Whether there may be a value.
        cas: Whether there must be a CAS (not 0); None for either.
        datatypes: Bits of `Datatype` that it may come with.
        partition: Whether it may name a partition other than 0.
    """

    extras: tuple[int, ...] = (0,)
    key: bool | None = True
    value: bool = False
    cas: bool | None = False
    datatypes: int = Datatype.RAW
    partition: bool = True

    @property
    def fits_key_only(self) -> bool:
        """Whether each `KeyRequest` has this shape."""
        return 0 in self.extras and self.key is not False and not self.cas and self.partition


_READ = Shape()
_TOUCHING = Shape(extras=(4,))
_COUNTING = Shape(extras=(20,))
_EXTENDING = Shape(value=True, cas=None, datatypes=Datatype.JSON)
_NOTHING = Shape(key=False)
_LOGIN = Shape(value=True)
_NAMED = Shape(key=None, value=True, partition=False)

SHAPES: dict[int, Shape] = {
    Opcode.GET: _READ,
    Opcode.GETK: _READ,
    Opcode.GAT: _TOUCHING,
    Opcode.GATK: _TOUCHING,
    Opcode.TOUCH: _TOUCHING,
    Opcode.GET_META: Shape(extras=(0, 1)),
    Opcode.SET: Shape(extras=(8,), value=True, cas=None, datatypes=Datatype.JSON),
    Opcode.REPLACE: Shape(extras=(8,), value=True, cas=None, datatypes=Datatype.JSON),
    Opcode.ADD: Shape(extras=(8,), value=True, datatypes=Datatype.JSON),
    Opcode.DELETE: Shape(cas=None),
    Opcode.INCREMENT: _COUNTING,
    Opcode.DECREMENT: _COUNTING,
    Opcode.APPEND: _EXTENDING,
    Opcode.PREPEND: _EXTENDING,
    Opcode.GET_LOCKED: Shape(extras=(0, 4)),
    Opcode.UNLOCK: Shape(cas=True),
    # How long their extras may be is a matter of their layout, see `kvproto.wire.subdoc`.
    Opcode.SUBDOC_MULTI_LOOKUP: Shape(extras=tuple(range(256)), value=True, cas=None),
    Opcode.SUBDOC_MULTI_MUTATION: Shape(extras=tuple(range(256)), value=True, cas=None),
    Opcode.FLUSH: Shape(extras=(0, 4), key=False, cas=None),
    Opcode.STAT: Shape(key=None, value=True, datatypes=Datatype.JSON),
    Opcode.OBSERVE_SEQNO: Shape(key=False, value=True, cas=None),
    Opcode.GET_MANIFEST: Shape(key=False, partition=False),
    Opcode.GET_COLLECTION_ID: _NAMED,
    Opcode.GET_SCOPE_ID: _NAMED,
    Opcode.SELECT_BUCKET: Shape(key=None, cas=None),
    Opcode.GET_CLUSTER_CONFIG: Shape(extras=(0, 16), key=False),
    Opcode.VERBOSITY: Shape(extras=(4,), key=False),
    Opcode.HELLO: Shape(key=None, value=True),
    Opcode.SASL_LIST: _NOTHING,
    Opcode.SASL_AUTH: _LOGIN,
    Opcode.SASL_STEP: _LOGIN,
    Opcode.GET_ERROR_MAP: Shape(key=False, value=True, partition=False),
    Opcode.NOOP: _NOTHING,
    Opcode.VERSION: _NOTHING,
    Opcode.QUIT: _NOTHING,
}
"""The shape of each opcode's requests; quiet opcodes have that of their loud one."""


def misshapen(session: BinaryClient, request: Request) -> Reply:
    """Answer a request that does not have the shape of its opcode."""
    return session.error_to(request, Status.INVALID)


def shaped(
    handler: Handler,
    shape: Shape,
    *,
    strict: bool,
    max_key: int = MAX_KEY,
    refuse: Handler = misshapen,
) -> Handler:
    """Make the form of a handler that is given requests of this shape only.

    Args:
        handler: Serves what is well formed.
        shape: What that is.
        strict: Whether to check CAS, datatype and partition too, as Couchbase does.
        max_key: Longest key as it is on the wire, in bytes.
        refuse: Answers the others.
    """
    # Where only one length will do, a tuple tells sooner than a set.
    sizes = shape.extras if len(shape.extras) == 1 else frozenset(shape.extras)
    least_key = 1 if shape.key else 0
    most_key = 0 if shape.key is False else max_key
    no_value = not shape.value
    # The Couchbase SDK sets JSON unasked; compressed values and values with attributes need
    # features that nobody was offered.
    foreign = ~int(shape.datatypes if strict else Datatype.JSON)
    # None: nothing about it matters.
    cas = shape.cas if strict or shape.cas else None
    at_home = strict and not shape.partition

    def check(session: BinaryClient, request: Request) -> Reply:
        if (
            len(request.extras) not in sizes
            or not least_key <= len(request.key) <= most_key
            or (no_value and request.value)
            or (request.datatype and request.datatype & foreign)
            or (cas is not None and cas != bool(request.cas))
            or (at_home and request.vbucket)
        ):
            return refuse(session, request)
        return handler(session, request)

    return check
