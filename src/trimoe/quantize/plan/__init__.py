"""Size and memory of a model before it is made."""
