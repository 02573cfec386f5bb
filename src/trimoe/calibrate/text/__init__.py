"""Calibration text: sets, sources, replies, leak check, tokenisation, windows."""
