"""Room ``store``: see docs."""
