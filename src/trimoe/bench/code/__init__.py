"""Scoring of generated code: one module per harness, all run in `trimoe.sandbox`.

Each `score(pairs)` takes (source, row) pairs and returns one `Verdict` per pair, in order: correct, wrong, code error,
code timeout, or not scored if the harness itself failed. Expected values and tests never share a process with a Python
candidate.
"""
