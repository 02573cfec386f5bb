"""A ladder of GGUF files: base file, importance matrix, tiers, smoke test."""
