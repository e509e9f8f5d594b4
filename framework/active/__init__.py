"""Active learning: how unsure a module is, what to buy under a budget, and what has been bought."""
