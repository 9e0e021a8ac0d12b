"""Evaluation by the paper's protocol: rollouts, normalised scores, reports, images and model cards."""
