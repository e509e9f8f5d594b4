"""LDS: learn a graph's edge probabilities together with a graph convolutional network (Franceschi et al., 2019)."""
