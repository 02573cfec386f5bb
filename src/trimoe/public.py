"""The public functions: imported on first use, callable under their package's name, with automatic progress.

Five public functions are named like a sub-package (`trimoe.calibrate`, `choose`, `certify`, `quantize`, `evaluate`).
Importing any module of such a package binds the package to that name in `trimoe`, so a function of the same name would
be found or not depending on what was imported before. The name therefore always is the package, and the package can be
called: `trimoe.calibrate(...)` calls the function, and `trimoe.calibrate.engine` and `import trimoe.calibrate.engine`
work as in any package. The alternative, a `trimoe` module that returns functions and hides the packages, breaks
`import trimoe.calibrate.engine as e` and every lookup by dotted name (pickle, pkgutil.resolve_name, pytest).

Called through `trimoe`, a function without a `progress` callback shows progress in a terminal or notebook; imported
from its own module, it is silent. Type checkers see the functions themselves: `trimoe/__init__.py` imports them for
checking only.
"""

import sys
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any

FUNCTIONS = {
    "open": "trimoe.model.open:open_model",
    "calibrate": "trimoe.calibrate.engine:calibrate",
    "choose": "trimoe.choose.choose:choose",
    "prune": "trimoe.cut.prune:prune",
    "certify": "trimoe.certify.certify:certify",
    "infer_map": "trimoe.certify.infer:infer_map",
    "plan": "trimoe.quantize.plan.predict:plan",
    "quantize": "trimoe.quantize.quantize:quantize",
    "evaluate": "trimoe.evaluate.evaluate:evaluate",
    "compare": "trimoe.judge.compare:compare",
}
"""Public name: module and function."""


class CallablePackage(ModuleType):
    """A package that is called like the public function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the public function."""
        return self._function(*args, **kwargs)

    @property
    def _function(self) -> Callable[..., Any]:
        return function(self.__name__.removeprefix("trimoe."))

    @property
    def __signature__(self) -> Signature:
        """The function's signature, for `inspect` and notebooks."""
        return signature(self._function)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        """Pickled by name, like a function."""
        return import_module, (self.__name__,)


def make_callable(package: str) -> None:
    """Make the package of this name callable. Called in its `__init__.py`."""
    sys.modules[package].__class__ = CallablePackage


def lookup(name: str) -> Any:
    """The object `trimoe.NAME` of a public function: its callable package if it has one, else the function."""
    module, _, _ = FUNCTIONS[name].partition(":")
    return import_module(f"trimoe.{name}") if module.startswith(f"trimoe.{name}.") else function(name)


@cache
def function(name: str) -> Callable[..., Any]:
    """A public function, imported now. Without a `progress` argument it shows progress where someone can see it."""
    module, _, attribute = FUNCTIONS[name].partition(":")
    inner: Callable[..., Any] = getattr(import_module(module), attribute)
    takes_progress = "progress" in signature(inner).parameters

    @wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not takes_progress or kwargs.get("progress") is not None:
            return inner(*args, **kwargs)
        from trimoe.io.progress import automatic

        with automatic(name) as progress:
            return inner(*args, **{**kwargs, "progress": progress})

    call.__name__ = call.__qualname__ = name
    call.__module__ = "trimoe"
    return call
