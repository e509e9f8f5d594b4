"""Mechanisms that no single method owns; importing this package imports nothing heavy."""
