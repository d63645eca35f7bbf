"""What pretraining and fine-tuning share: mesh, optimizers, steps, checkpoints, metrics."""
