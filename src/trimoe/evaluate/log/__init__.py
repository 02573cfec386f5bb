"""The run log: one SQLite file with every reply and every verdict."""
