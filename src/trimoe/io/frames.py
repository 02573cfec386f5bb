"""Tables as pandas DataFrames, for results that offer `to_pandas()`. pandas is imported only when one is asked for."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from trimoe.errors import MissingPrerequisite


def data_frame(columns: Mapping[str, Sequence[Any] | Any]) -> Any:
    """A `pandas.DataFrame` of columns of equal length, in order. Raises `MissingPrerequisite` without pandas."""
    try:
        pandas = import_module("pandas")
    except ImportError as exc:
        raise MissingPrerequisite(
            "to_pandas needs the package pandas",
            expected="pandas",
            actual=str(exc),
            remedy="pip install pandas, or use as_dict()",
        ) from exc
    return pandas.DataFrame(dict(columns))
