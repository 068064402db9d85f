"""Results of softce_fast.sharded, put together from shards."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from softce_fast import sharded
from truth import Array

OF_LOGITS = ("temperature", "softcap", "where")


class Sharded:
    """All functions on shards of the classes, put together again."""

    def __init__(
        self, logits: Array, target: Array | None, cuts: Sequence[int], module: Any = sharded,
        axis: int = -1, **options: Any,
    ) -> None:  # fmt: skip
        self.module, self.target, self.axis = module, target, axis
        self.of_loss = {k: v for k, v in options.items() if k not in ("weight", *OF_LOGITS)}
        of_logits: dict[str, Any] = {
            k: options[k] for k in ("temperature", "softcap") if k in options
        }
        self.parts: list[tuple[Array, dict[str, Any]]] = []
        for start, stop in itertools.pairwise([0, *cuts, logits.shape[axis]]):
            shard = (*[slice(None)] * (axis % logits.ndim), slice(start, stop))
            more: dict[str, Any] = {"class_offset": start, **of_logits}
            if "weight" in options:
                more["weight"] = options["weight"][start:stop]
            if "where" in options:
                more["where"] = options["where"][shard]
            self.parts.append((logits[shard], more))
        self.each = [module.row_states(part, target, axis, **more) for part, more in self.parts]
        self.states = module.merge(*self.each)

    def _joined(self, function: Any) -> Array:
        results = [
            function(part, self.states, self.axis, **{k: more[k] for k in OF_LOGITS if k in more})
            for part, more in self.parts
        ]
        return np.concatenate(results, axis=self.axis)

    @property
    def logsumexp(self) -> Any:
        return self.module.logsumexp(self.states)

    @property
    def softmax(self) -> Array:
        return self._joined(self.module.softmax)

    @property
    def log_softmax(self) -> Array:
        return self._joined(self.module.log_softmax)

    @property
    def loss(self) -> Any:
        return self.module.cross_entropy(self.states, **self.of_loss)

    @property
    def gradient(self) -> Array:
        function = self.module.cross_entropy_grad
        results = [
            function(part, self.target, self.states, self.axis, **more, **self.of_loss)
            for part, more in self.parts
        ]
        return np.concatenate(results, axis=self.axis)
