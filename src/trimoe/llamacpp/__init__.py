"""llama.cpp: find it, build it, call its programs."""
