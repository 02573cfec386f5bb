"""Verdicts on generated code: one thin file per harness, all of which run in `trimoe.sandbox`.

Each `score(pairs)` takes (source, row) pairs and gives one `Verdict` each, in their order: correct, wrong, code error,
code timeout, or not scored where the harness itself failed. Expected values and tests never share a process with a
Python candidate.
"""
