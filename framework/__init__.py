"""Mechanisms that no single method owns; importing this package imports nothing heavy."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # Flower reads it when it is imported, and reports runs otherwise
