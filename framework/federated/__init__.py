"""Federated training: how the clients' data differ, what they do and send, and how the server combines it."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # Flower reads it when it is imported, and reports runs otherwise
