"""Certifies a pruned model: it is the original minus the dropped experts, and nothing else changed."""

from trimoe.public import make_callable

make_callable(__name__)
