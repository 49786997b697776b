"""Helpers that every floor shares; each exists once, here.

Nothing here knows TLS, key-value data or a listener, and nothing here imports another room.
"""
