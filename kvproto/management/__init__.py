"""Couchbase's management REST, as much of it as clients need to set up their tests.

What is served, with the forms of answers and errors, is on the reference page "Management REST".
What may change and what comes of it is `kvproto.dataplane.Administration`'s.
"""

from __future__ import annotations

from kvproto.management.port import ManagementFactory
from kvproto.management.site import ManagementSite

__all__ = ["ManagementFactory", "ManagementSite"]
