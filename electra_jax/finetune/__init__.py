"""What the discriminator is kept for: classification, question answering, sequence labelling."""
