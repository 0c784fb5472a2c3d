"""What every task has in common: networks, their loss on a batch, and what they are worth on whole scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from tomoray.archive import Archive
from tomoray.patches import Batch

Networks = Mapping[str, nn.Module]


class Task(Protocol):
    """One kind of learning. Holds no state of a training: that is in the networks.

    Attributes:
        monitor: the score that says which checkpoint is best.
        higher_is_better: whether more of it is.
    """

    monitor: str
    higher_is_better: bool

    def build_networks(self) -> dict[str, nn.Module]:
        """Networks with random weights, by name. A step trains each in turn, in this order, the others held still."""
        ...

    def loss(self, networks: Networks, batch: Batch, training: str) -> Tensor:
        """The mean loss of a batch, a scalar, when the network named `training` learns.

        Args:
            networks: by name; the one being trained may be wrapped for several workers, and is called once only.
            batch: on the networks' device, augmented.
            training: a name from `networks`.
        """
        ...

    def examine(self, networks: Networks, archive: Archive, scan_id: str) -> dict[str, Any]:
        """What `score` needs to know of one whole scan, as JSON; networks are in `eval` mode."""
        ...

    def score(self, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Scores over scans, from what `examine` found, in any order; holds `monitor` unless `found` is empty."""
        ...
