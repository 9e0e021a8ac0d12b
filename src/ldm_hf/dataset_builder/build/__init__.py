"""Building data: which candidates train how long on which environments, and the jobs that follow from it."""
