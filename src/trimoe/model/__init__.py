"""What a checkpoint is: families as data, tensors as byte ranges, the bundled model."""
