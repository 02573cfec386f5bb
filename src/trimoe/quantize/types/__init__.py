"""Quantization types: tiers, per-tensor type rules, and the sizes that follow."""
