"""Reading and writing: publishing by rename, streaming copies, hashing, progress, validated data files."""
