"""Federated training: how the clients' data differ, what they do and send, and how the server combines it."""
