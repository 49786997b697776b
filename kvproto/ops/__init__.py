"""How an operator sees and steers the service.

``commands`` is the vocabulary, ``service_control`` carries it out, ``control`` and
``control_socket`` serve it, ``client`` speaks it.  ``status`` turns the state of the service into
documented values, ``render`` these into lines for people.  ``http``, ``metrics`` and ``page`` are
for monitoring; ``signals`` and ``keylog`` need no socket.

This module imports nothing, so that the command ``kvtls`` starts without Twisted.
"""
