"""Model + bench -> run log."""
