"""The run log: one SQLite file with every sample and every verdict."""
