"""Room ``wire``: see docs."""
