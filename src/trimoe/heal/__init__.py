"""Heals a pruned checkpoint: changes beyond expert removal, measured on held-out text and recorded."""
