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
    """x -> act(x weight^T + bias), to which a stage may add x, or x residual^T; one stage after another.

    Their parameters are dense.{i}.weight: float [out, in], dense.{i}.bias: float [out] and dense.{i}.residual.weight: float
    [out, in] of parameters; first_values says what they begin as.
    """

    def __init__(self, stages: Sequence[DenseStage], parameters: Parameters):
        self._activations = [stage.activation for stage in stages]
        self._adds_input = [stage.adds_input for stage in stages]
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
            out = bend(total, activation)
            if self._adds_input[index]:
                residual = self._parameters.get(_residual(index))
                out = out + (x if residual is None else x @ residual.T)
            x = out
        return x

    def backward(self, d: np.ndarray) -> np.ndarray:
        """The gradient of the last forward's x: float [texts, in] of that of its result: float [texts, out]; parameters'
        gradients are added."""
        for index in reversed(range(len(self._activations))):
            activation, total = self._activations[index], self._sums[index]
            slope = 1 - np.tanh(total) ** 2 if activation == "tanh" else derivative(total, ACTIVATIONS[activation])
            d_out, d = d, d * slope
            bias = self._parameters.get_gradient(f"dense.{index}.bias")
            if bias is not None:
                bias += d.sum(axis=0)
            gradient = self._parameters.gradient(f"dense.{index}.weight")
            gradient += d.T @ self._inputs[index]
            d = d @ self._parameters[f"dense.{index}.weight"]
            if self._adds_input[index]:
                residual = self._parameters.get(_residual(index))
                if residual is not None:
                    gradient = self._parameters.gradient(_residual(index))
                    gradient += d_out.T @ self._inputs[index]
                d = d + (d_out if residual is None else d_out @ residual)
        return d


def _residual(index: int) -> str:
    return f"dense.{index}.residual.weight"


def first_values(stages: Sequence[DenseStage]) -> dict[str, np.ndarray]:
    """The parameters of these stages, as their files have them."""
    found = {}
    for index, stage in enumerate(stages):
        found[f"dense.{index}.weight"] = stage.weight.values()
        if stage.bias is not None:
            found[f"dense.{index}.bias"] = stage.bias.values()
        if stage.residual is not None:
            found[_residual(index)] = stage.residual.values()
    return found
