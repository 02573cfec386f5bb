"""Predictions of size and memory before a model is quantized."""
