"""Bilevel optimisation: differentiable inner optimisers and truncated hypergradients, for any pair of objectives."""
