"""What is learned: masking, sampling, objectives, the pretraining program and its evaluation."""
