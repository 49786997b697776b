"""Tests of kvproto.

They start Python some hundreds of times.  Where it is told to keep no compiled modules, as in many
containers, each start would compile all of the service anew, which takes as long as the rest of
the start; they are kept for this run then, apart from the checkout.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="kvproto-compiled-")
    atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], ignore_errors=True)
