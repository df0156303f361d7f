"""The activation functions by name and number: ops take names, kernels numbers. Knows no formula."""

ACTIVATIONS = {"none": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "relu": 4}
