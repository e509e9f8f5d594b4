"""Evidence: statistics over seeds, result records with their circumstances, and the tables made from them.

Light on purpose: nothing here imports torch, and scipy only where an interval is computed.
"""
