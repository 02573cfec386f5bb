"""Reading and writing: publish by rename, streaming copies, hashing, progress, validated data files."""
