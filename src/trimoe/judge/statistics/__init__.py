"""Statistics of paired right-or-wrong answers."""
