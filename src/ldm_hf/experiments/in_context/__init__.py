"""Learning in context: families of tasks with a hidden parameter, which a model finds out while it acts."""
