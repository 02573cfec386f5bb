"""Dequantization: the float values of quantized tensors, decoded one at a time, one module for each form of storage."""
