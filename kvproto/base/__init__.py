"""What every floor shares and nobody owns: each helper exists once, here.

Nothing here knows TLS, key-value data or a listener, and nothing here imports another room.
"""
