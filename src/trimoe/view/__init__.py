"""The viewer: a local website over run logs; it never writes to a log."""
