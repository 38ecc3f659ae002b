"""What `compress` works with: the cache of steps, training, counting, judging, and the user's own code and data."""
