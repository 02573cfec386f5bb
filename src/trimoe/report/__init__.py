"""The report: one self-contained HTML page and one picture, drawn from typed data and nothing else."""
