"""Model families: the sections of a family file, and which family a model belongs to."""
