"""Reports as single files that open without a network."""
