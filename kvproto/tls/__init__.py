"""Room ``tls``: see docs."""
