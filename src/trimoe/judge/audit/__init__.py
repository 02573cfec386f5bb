"""Audits of scores: checks with evidence."""
