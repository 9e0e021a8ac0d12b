"""What pretraining is worth: held-out environments learned from a few episodes, beside everything else that could."""
