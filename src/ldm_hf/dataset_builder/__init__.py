"""Reference policies and datasets: train a policy, record everything, relabel it, write it in one versioned format."""
