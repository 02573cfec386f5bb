"""Original + pruned model -> certificate: the cut removes the dropped experts and changes nothing else."""
