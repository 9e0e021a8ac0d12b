"""Training: one file of settings, one loop on Accelerate, checkpoints that continue bit for bit."""
