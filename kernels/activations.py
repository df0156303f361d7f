"""The activation functions by name and number: ops take names, kernels numbers. Knows no formula but the reference's.

Sources: GELU, Hendrycks and Gimpel 2016 (arXiv 1606.08415); SiLU, Elfwing et al. 2017 (arXiv 1702.03118).
"""

ACTIVATIONS = {"none": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "relu": 4}
