"""Node links: a hidden Erlang distribution node over TLS.

A program makes one `Node`, registers processes on it and brings it connections:
those that a listener accepted through `NodeController`, its own through a
`Connector` per node.  ``docs/explanation/node-links.md`` says how it fits
together, ``docs/reference/node-links.md`` what is spoken.
"""

from __future__ import annotations

from kvproto.base.backoff import Backoff
from kvproto.dist.builtin import DEFAULT_NAME, BuiltinProcess, ControlCommand
from kvproto.dist.connector import Connector, ConnectorState, SecuredEndpoint
from kvproto.dist.controller import NodeController
from kvproto.dist.encoding import encode
from kvproto.dist.epmd import EpmdClient, EpmdRegistration, FixedPorts
from kvproto.dist.errors import (
    CallRefused,
    CallTimeoutError,
    NodeDownError,
    OversizedAnswerError,
    ProcessDownError,
    RemoteCallError,
)
from kvproto.dist.etf import decode
from kvproto.dist.link import LinkState, NodeLink
from kvproto.dist.node import Node, NodeEvent, NodeSettings
from kvproto.dist.processes import Caller, GenServer, IGenServer, Process
from kvproto.dist.rotation import LinkRotation, RestartReport, wait_for_nodes
from kvproto.dist.session import SessionLimits
from kvproto.dist.terms import (
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    MapPairs,
    Pid,
    Port,
    Reference,
    Term,
)

__all__ = [
    "DEFAULT_NAME",
    "Atom",
    "Backoff",
    "BitString",
    "BuiltinProcess",
    "CallRefused",
    "CallTimeoutError",
    "Caller",
    "Connector",
    "ConnectorState",
    "ControlCommand",
    "EpmdClient",
    "EpmdRegistration",
    "Export",
    "FixedPorts",
    "Fun",
    "GenServer",
    "IGenServer",
    "ImproperList",
    "LinkRotation",
    "LinkState",
    "MapPairs",
    "Node",
    "NodeController",
    "NodeDownError",
    "NodeEvent",
    "NodeLink",
    "NodeSettings",
    "OversizedAnswerError",
    "Pid",
    "Port",
    "Process",
    "ProcessDownError",
    "Reference",
    "RemoteCallError",
    "RestartReport",
    "SecuredEndpoint",
    "SessionLimits",
    "Term",
    "decode",
    "encode",
    "wait_for_nodes",
]
