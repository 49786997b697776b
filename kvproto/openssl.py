"""How OpenSSL is loaded into the process of ``twistd kvtls``: with a configuration of ours.

One thing can be said to OpenSSL in no other way: that it shall send no session tickets
(``SSL_CTX_set_num_tickets``, for which pyOpenSSL has no name).  It reads its configuration when it
is loaded, from the file that the environment names; so the file is named while it is loaded.

Only where nobody else has a say: no configuration is named already, OpenSSL is not loaded yet, and
it is the one that comes inside of cryptography's wheels, which has no configuration of its own.

Source: openssl-config(5), SSL_CONF_cmd(3).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import as_file, files

__all__ = ["is_bundled", "load_openssl"]

_VARIABLE = "OPENSSL_CONF"
_BINDING = "cryptography.hazmat.bindings._rust"


def is_bundled() -> bool:
    """Return whether cryptography brings an OpenSSL of its own: its wheels for Linux do."""
    try:
        wheel = distribution("cryptography").read_text("WHEEL") or ""
    except PackageNotFoundError:
        return False
    return "manylinux" in wheel or "musllinux" in wheel


def load_openssl() -> bool:
    """Load OpenSSL with our configuration, where that is for us to decide.

    Returns:
        Whether it was.
    """
    if _VARIABLE in os.environ or _BINDING in sys.modules or not is_bundled():
        return False
    with as_file(files("kvproto") / "openssl.cnf") as path:
        os.environ[_VARIABLE] = str(path)
        try:
            import_module(_BINDING)
        finally:
            # Neither Python's own OpenSSL nor a child process shall find it.
            del os.environ[_VARIABLE]
    return True
