"""Room ``server``: see docs."""
