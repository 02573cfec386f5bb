"""trimoe: makes Mixture-of-Experts LLMs smaller and proves what that cost."""

__version__ = "0.1.0"
