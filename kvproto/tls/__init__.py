"""How bytes are kept secret: credentials, contexts, the TLS protocol, rotation, identity.

Knows nothing of key-value requests: any Twisted protocol can sit on top.
"""

from __future__ import annotations

from kvproto.tls.contexts import (
    ClientContext,
    CurrentContext,
    ServerPolicy,
    build_client_context,
    build_server_context,
    verify_failure,
)
from kvproto.tls.credentials import (
    Credentials,
    CredentialWarning,
    load_credentials,
)
from kvproto.tls.development import DevelopmentCredentials, ensure_development_credentials
from kvproto.tls.endpoints import TLSClientEndpoint, TLSServerEndpoint
from kvproto.tls.factory import KVTLSFactory
from kvproto.tls.files import CredentialFiles, Options
from kvproto.tls.generation import Generation, GenerationError, Stage
from kvproto.tls.identity import DEFAULT_RULES, IdentityRule, parse_rule, user_of
from kvproto.tls.protocol import KVTLSProtocol
from kvproto.tls.reasons import (
    BudgetExceeded,
    CloseTimeout,
    HandshakeInterrupted,
    HandshakeTimeout,
    explanation,
)
from kvproto.tls.rotating import RotatingServerEndpoint
from kvproto.tls.rotation import Rotation
from kvproto.tls.verdict import Action, ListenerResult, Verdict
from kvproto.tls.watch import FileWatch

__all__ = [
    "DEFAULT_RULES",
    "Action",
    "BudgetExceeded",
    "ClientContext",
    "CloseTimeout",
    "CredentialFiles",
    "CredentialWarning",
    "Credentials",
    "CurrentContext",
    "DevelopmentCredentials",
    "FileWatch",
    "Generation",
    "GenerationError",
    "HandshakeInterrupted",
    "HandshakeTimeout",
    "IdentityRule",
    "KVTLSFactory",
    "KVTLSProtocol",
    "ListenerResult",
    "Options",
    "RotatingServerEndpoint",
    "Rotation",
    "ServerPolicy",
    "Stage",
    "TLSClientEndpoint",
    "TLSServerEndpoint",
    "Verdict",
    "build_client_context",
    "build_server_context",
    "ensure_development_credentials",
    "explanation",
    "load_credentials",
    "parse_rule",
    "user_of",
    "verify_failure",
]
