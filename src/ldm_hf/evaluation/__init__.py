"""Evaluation by the paper's protocol: rollouts, normalised scores, reports, pictures and model cards."""
