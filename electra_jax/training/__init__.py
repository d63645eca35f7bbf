"""What pretraining and fine-tuning share: mesh, optimizers, checkpoints, progress."""
