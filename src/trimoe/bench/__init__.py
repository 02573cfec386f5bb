"""Benches: questions, extraction of answers, and scorers."""
