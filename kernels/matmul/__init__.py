"""Matrix products: out = A B in all transpositions, the linear layer with fused epilogues, and its gradients."""
