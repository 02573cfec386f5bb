"""The forward pass with one decoder layer in memory."""
