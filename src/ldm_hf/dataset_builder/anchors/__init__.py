"""What a return is worth: random and trivial policies, known good scores, flags of degenerate policies."""
