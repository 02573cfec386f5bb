"""One generator of items per domain; in each module, `make` returns one item."""
