"""Memory of a layer's reconstruction: all experts' outputs for all sampled tokens, and the search's own values."""

_FULL = 1 << 30
"""Bytes of outputs up to which they keep the forward's type; beyond, they are stored in bfloat16."""


def item_size(experts: int, tokens: int, hidden: int, item: int) -> int:
    """Bytes of one stored value, where the forward's type has `item`."""
    return item if experts * tokens * hidden * item <= _FULL else 2


def reconstruction_bytes(experts: int, tokens: int, hidden: int, item: int) -> int:
    """Peak bytes. The search holds about eight values [T, H] and four [T, E], in fp32 or float64."""
    outputs = experts * tokens * hidden * item_size(experts, tokens, hidden, item)
    return outputs + tokens * (hidden * 8 * 4 + experts * 4 * 8)
