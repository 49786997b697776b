"""Print a constraints file that holds every direct dependency at its declared lower bound.

``python .ci/oldest.py EXTRA…``: kvproto's own requirements, and those of the named extras.
"""

import re
import sys
from importlib.metadata import requires


def main() -> None:
    """Read what the installed kvproto declares."""
    wanted = set(sys.argv[1:])
    for line in requires("kvproto") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == .(\w+).", marker)
        if extra is not None and extra[1] not in wanted:
            continue
        found = re.fullmatch(r"([\w.-]+)(?:\[.*\])?.*>=([\w.]+).*", requirement.strip())
        if found is None:
            raise SystemExit(f"{requirement.strip()} has no lower bound")
        print(f"{found[1]}=={found[2]}")


main()
