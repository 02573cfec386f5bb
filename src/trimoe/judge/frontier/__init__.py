"""Quality against file size."""
