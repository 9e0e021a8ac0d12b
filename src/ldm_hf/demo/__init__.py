"""``ldm demo``: a model, its references and a random policy, to be watched and compared on this machine."""
