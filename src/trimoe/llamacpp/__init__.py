"""Finding, building and calling llama.cpp."""
