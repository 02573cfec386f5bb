"""Model + bench -> run log: generation, extraction, scoring, every sample kept."""
