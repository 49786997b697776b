"""Room ``ops``: how an operator sees and steers the service.

``control`` serves the control socket, ``client`` speaks to it, ``vocabulary`` is what both
say, ``status`` and ``text`` turn the state of the service into documented values and into
lines for people, ``signals`` and ``keylog`` are the two doors that need no socket.

This module imports nothing, so that the command ``kvtls`` starts without Twisted.
"""
