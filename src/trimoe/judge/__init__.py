"""Judging run logs: comparisons, audits, and the statistics behind them."""
