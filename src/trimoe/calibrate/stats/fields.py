"""Names and meaning of the measured fields, and the sizes of one layer's arrays.

Field names are part of the statistics file. All values are float64 sums over tokens, except maxima and the mean norm.
"""

from dataclasses import dataclass

SUMS = (
    "tc",
    "cc",
    "wnorm",
    "rnorm",
    "wnsq",
    "rnsq",
    "wsum",
    "wsum_total",
    "reap_sum",
    "reap_l2_sum",
    "ean_sum",
    "runner_up",
    "logit_sum",
    "logit_sqsum",
    "tokens",
)
"""Additive fields [class, shard, expert]. reap_l2_sum: sum of w_t |o_t|^2; runner_up: tokens for which the expert
ranked next after the chosen ones; logit_sum, logit_sqsum: sums of the router logits and of their squares over all
tokens; tokens: number of tokens (the same for every expert)."""
BY_KIND = (
    "tc",
    "cc",
    "wnorm",
    "rnorm",
    "wnsq",
    "rnsq",
    "wsum",
    "wsum_total",
    "reap_sum",
    "reap_l2_sum",
    "ean_sum",
    "tokens",
)
"""Fields that are also stored per kind of position, as KIND/FIELD such as own/tc, where a set has several kinds: the
sums over the positions of that kind alone. Norms over a window are then over its positions of that kind, so `wnorm`,
`rnorm`, `wsum` and `cc` of the kinds do not add up to the total; all others do."""
COUNT = "routed"
"""Tokens routed to the expert, each document counted once whatever its weight: the sample size behind its numbers.
Additive, not split into shards."""
MAXIMA = ("contrib_max", "out_max")
"""Fields merged by maximum: w_t |o_t| and |o_t|."""
MEAN_VECTOR = "out_mean_norm"
"""Euclidean norm of the mean output vector over a class; it can be neither summed nor split into shards."""
COACTIVATION = "coactivation"
"""[class, expert, expert] tokens routed to both experts; the diagonal is tc. Additive, optional."""
RECON_RANK, RECON_ERROR = "recon_rank", "recon_error"
"""Of the greedy reconstruction (`calibrate.recon`): the turn at which an expert is dropped, from 1, the same in every
class; and the squared change of the layer's output after that drop, as a share of its square, in the class's sampled
tokens. They belong to one sample of tokens and cannot be merged. Optional."""
NEURONS = "neuron_act"
"""[class, expert, I] sum over tokens of the squared activation of each inner neuron. Additive, optional."""
NEURON_CONTRIBUTION = "neuron_contrib"
"""[class, expert, I] sum over tokens of (w_t x activation)^2 |column of the down projection|^2: the second moment of
what the neuron adds to the layer's output, as HEAPr (arXiv 2509.22299) uses it. Prompts count only in classes that
consist of nothing else. Additive, optional."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one layer's arrays. `inner` is the expert width I."""

    classes: int
    shards: int
    experts: int
    hidden: int
    inner: int
    coactivation: bool = False
    neurons: bool = False
    kinds: tuple[str, ...] = ()
    """Kinds of position that are also summed apart; empty where a set has only one."""
    answered: tuple[bool, ...] = ()
    """Whether each class has positions besides prompts; empty if no class has prompts."""

    @property
    def sums(self) -> tuple[str, ...]:
        """Names of the additive fields [class, shard, expert]."""
        return (*SUMS, *(kind_field(kind, name) for kind in self.kinds for name in BY_KIND))

    @property
    def cells(self) -> int:
        """Experts of a layer, by class."""
        return self.classes * self.experts


def kind_field(kind: str, name: str) -> str:
    """Name of a field restricted to one kind of position."""
    return f"{kind}/{name}"
