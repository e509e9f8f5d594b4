"""LDS: learn the graph's edge probabilities together with a graph convolutional network (Franceschi et al., ICML 2019)."""
