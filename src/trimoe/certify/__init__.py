"""Original + pruned model -> certificate: the cut removes the dropped experts and changes nothing else."""

from trimoe.public import make_callable

make_callable(__name__)
