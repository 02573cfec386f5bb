"""GGUF files: header, tensors as byte ranges, the model they describe, importance matrices."""
