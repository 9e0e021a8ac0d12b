"""``ldm serve``: one model acts for many clients, whose environments are steps of common batches."""
