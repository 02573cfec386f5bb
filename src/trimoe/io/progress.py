"""How long-running functions report progress: one callback type, called as `progress(done, total, text)`.

`done` and `total` count the same unit (bytes, layers, prompts); `total` is 0 while it is unknown; `text` names the
current item. Callbacks run on the worker's thread and must return quickly.
"""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
