"""Inference servers, one file per engine."""
