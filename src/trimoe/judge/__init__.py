"""Run logs -> what may be claimed."""
