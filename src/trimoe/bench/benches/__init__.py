"""One file per benchmark. A module with a `BENCH`, or a TOML file with an `[answer]` table, is found automatically."""
