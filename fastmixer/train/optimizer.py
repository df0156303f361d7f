"""AdamW over the flat buffers: one norm, then one pass that clips, decays, updates and zeroes gradients (where backward
does not write them whole: Parameters.stale).

Knows nothing of schedules or steps of a run.
"""

import math

import numpy as np

from fastmixer.model.parameters import Parameters
from fastmixer.ops.checks import check_number
from fastmixer.ops.embedding import SparseRows, update_rows_adamw
from fastmixer.ops.optimizer import adamw_step, global_norm


class AdamW:
    """AdamW with decoupled decay (of matrices only) and clipping by the global norm of all gradients.

    m, v: float32 [size], moments in flat buffers beside the parameters. Of a table whose gradient is made of rows
    (Parameters.sparse) only those rows are updated, decay included; the others keep weights and moments.
    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101); clipping: Pascanu et al. 2013 (arXiv 1211.5063).
    """

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float = 3e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        epsilon: float = 1e-8,
        weight_decay: float = 0.1,
        clip_norm: float | None = 1.0,
    ):
        if not isinstance(parameters, Parameters):
            raise TypeError(
                f"AdamW: parameters must be a model's parameters (model.parameters); got {type(parameters).__name__}"
            )
        for name, value in (("learning_rate", learning_rate), ("epsilon", epsilon), ("weight_decay", weight_decay)):
            check_number("AdamW", name, value, at_least=0)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"AdamW: betas must be two numbers, of the first moment and of the second; got {betas!r}")
        for index, beta in enumerate(betas):
            check_number("AdamW", f"betas[{index}]", beta, at_least=0, below=1)
        if clip_norm is not None:
            check_number("AdamW", "clip_norm", clip_norm, above=0)
        self.parameters = parameters
        self.learning_rate, self.betas, self.epsilon = learning_rate, betas, epsilon
        self.weight_decay, self.clip_norm = weight_decay, clip_norm
        self.m, self.v = np.zeros_like(parameters.data), np.zeros_like(parameters.data)
        self.step_count = 0
        self._segments = parameters.update_segments()

    def step(self, learning_rate: float | None = None) -> float:
        """Clip, update, zero the gradients; returns their global norm before clipping.

        learning_rate: of this step (None: the optimizer's). Raises FloatingPointError, with nothing changed, if that norm is
        NaN or infinite; TypeError or ValueError for a learning rate that is no number >= 0.
        """
        rate = self.learning_rate if learning_rate is None else learning_rate
        check_number("AdamW", "learning_rate", rate, at_least=0)
        parameters, gradients, sparse = self.parameters, self.parameters.gradients_data, self.parameters.sparse()
        norm = self._norm(sparse)
        if not math.isfinite(norm):
            raise FloatingPointError(f"AdamW: the gradients' norm is {norm}; nothing was updated")
        scale = min(1.0, self.clip_norm / norm) if self.clip_norm is not None and norm > 0 else 1.0
        self.step_count += 1
        for start, stop, decayed, name in self._segments:
            rounded = None if name is None else parameters.rounded(name)
            shape = -1 if name is None or rounded is None else parameters[name].shape
            adamw_step(
                *(flat[start:stop].reshape(shape) for flat in (parameters.data, self.m, self.v, gradients)),
                learning_rate=rate, beta1=self.betas[0], beta2=self.betas[1], epsilon=self.epsilon,
                weight_decay=self.weight_decay if decayed else 0.0, step=self.step_count, gradient_scale=scale,
                zero_gradient=not parameters.is_rewritten(name), rounded=rounded,
            )  # fmt: skip
        for name, rows in sparse.items():
            start = parameters.start(name)
            stop, shape = start + parameters[name].size, parameters[name].shape
            update_rows_adamw(
                parameters[name], self.m[start:stop].reshape(shape), self.v[start:stop].reshape(shape),
                SparseRows(rows.rows, rows.values * rows.values.dtype.type(scale), rows.num_rows), rate,
                step=self.step_count, beta1=self.betas[0], beta2=self.betas[1], epsilon=self.epsilon,
                weight_decay=self.weight_decay,
            )  # fmt: skip
        parameters.clear_sparse()
        parameters.stale = True
        return norm

    def _norm(self, sparse: dict[str, SparseRows]) -> float:
        """The norm of all gradients, dense and made of rows."""
        if not sparse:
            return global_norm(self.parameters.gradients_data)
        dense = [global_norm(self.parameters.gradients_data[start:stop]) for start, stop, *_ in self._segments]
        return math.hypot(*dense, *(global_norm(rows.values.reshape(-1)) for rows in sparse.values()))
