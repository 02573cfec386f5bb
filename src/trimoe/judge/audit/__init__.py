"""Whether a score is fit to publish: checks with evidence."""
