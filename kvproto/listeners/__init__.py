"""Room ``listeners``: see docs."""
