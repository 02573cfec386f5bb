"""Publishing: what of a folder goes out, what must not, and the ways to the hub and to ollama."""
