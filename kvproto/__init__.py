"""A key-value data service over TLS for Twisted.

The parts stand in floors, see ``docs/explanation/architecture.md``; this
module only names the version, so that importing ``kvproto.wire`` alone stays
cheap.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kvproto")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
