"""Expert statistics: accumulate, store, merge, convert, summarize."""
