"""Changes to a pruned checkpoint beyond removal: measured on held-out text, recorded, and certified as such."""
