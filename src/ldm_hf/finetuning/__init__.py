"""Fine-tuning: a few episodes of one environment, recorded or the model's own, and the training loop on them."""
