"""Documents in memory, kept in a directory: the store behind ``file:``.

``records`` says what a change looks like in a file, ``segments`` what a file looks like,
``disk`` does what may block, ``journal`` is the log of changes, ``loading`` reads it back, and
``store`` puts a `MemoryStore` and a journal together.

Theory.  All documents are in memory and all reads come from there.  Every change is also
appended to a log that is cut into segments.  The segment that is written to is mapped into
memory, so appending is copying: when the copy is made the kernel has it, and the death of this
process loses nothing.  Its blocks were written (with zeros) and forced to the disk before, so
appending can neither fail for lack of space nor allocate anything.  What blocks (preparing
segments, forcing them to the disk, reading and removing old ones) is done in threads.

The log grows with every change, so the oldest segment is cleaned when there is too much: each
of its records that is still what memory holds is appended again, then it is removed.  As
always the oldest goes first, a record of a removal can be dropped with its segment: nothing
older is left that it could concern.
"""

from __future__ import annotations
