"""One thin file per benchmark. A module here with a `BENCH` is found by itself; nothing else needs editing."""
