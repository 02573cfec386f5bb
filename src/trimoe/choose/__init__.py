"""Expert statistics -> drop map."""

from trimoe.public import make_callable

make_callable(__name__)
