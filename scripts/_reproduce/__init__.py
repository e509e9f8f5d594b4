"""What stands behind ``scripts/reproduce``: declared experiments, their runs in parallel, and their records."""
