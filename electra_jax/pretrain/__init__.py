"""Pretraining: masking, sampling, objectives, the training program and its evaluation."""
