"""Artifacts and run logs -> model cards, uploads to the hub, and tags for ollama."""
