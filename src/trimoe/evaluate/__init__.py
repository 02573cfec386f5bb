"""Model + bench -> run log: generation, extraction, scoring, every sample kept."""

from trimoe.public import make_callable

make_callable(__name__)
