"""Dense stages that learn: what stands between a text's pooled hidden state and its vector in some models, and the way back.

NumPy's products serve, as there is one row a text. Knows nothing of encoders, texts or losses.
"""

from collections.abc import Sequence

import numpy as np

from fastmixer.kernels.activations import ACTIVATIONS
from fastmixer.kernels.activations_reference import derivative
from fastmixer.model.encoder import bend, dense
from fastmixer.model.parameters import Parameters
from fastmixer.weights.encoder_recipe import DenseStage


class DenseStages:
    """x -> act(x weight^T + bias), one stage after another.

    Their parameters are dense.{i}.weight: float [out, in] and dense.{i}.bias: float [out] of parameters; first_values says
    what they begin as.
    """

    def __init__(self, stages: Sequence[DenseStage], parameters: Parameters):
        self._activations = [stage.activation for stage in stages]
        self._parameters = parameters
        self._inputs: list[np.ndarray] = []
        self._sums: list[np.ndarray] = []  # before the activation

    def forward(self, x: np.ndarray) -> np.ndarray:
        """float [texts, out] of x: float [texts, in]."""
        self._inputs, self._sums = [], []
        for index, activation in enumerate(self._activations):
            weight, bias = self._parameters[f"dense.{index}.weight"], self._parameters.get(f"dense.{index}.bias")
            total = dense(x, weight, bias, "none")
            self._inputs.append(x)
            self._sums.append(total)
            x = bend(total, activation)
        return x

    def backward(self, d: np.ndarray) -> np.ndarray:
        """The gradient of the last forward's x: float [texts, in] of that of its result: float [texts, out]; parameters'
        gradients are added."""
        for index in reversed(range(len(self._activations))):
            activation, total = self._activations[index], self._sums[index]
            slope = 1 - np.tanh(total) ** 2 if activation == "tanh" else derivative(total, ACTIVATIONS[activation])
            d = d * slope
            bias = self._parameters.get_gradient(f"dense.{index}.bias")
            if bias is not None:
                bias += d.sum(axis=0)
            gradient = self._parameters.gradient(f"dense.{index}.weight")
            gradient += d.T @ self._inputs[index]
            d = d @ self._parameters[f"dense.{index}.weight"]
        return d


def first_values(stages: Sequence[DenseStage]) -> dict[str, np.ndarray]:
    """The parameters of these stages, as their files have them."""
    found = {}
    for index, stage in enumerate(stages):
        found[f"dense.{index}.weight"] = stage.weight.values()
        if stage.bias is not None:
            found[f"dense.{index}.bias"] = stage.bias.values()
    return found
