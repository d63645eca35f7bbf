"""Weights and tokenizers of other programs: Hugging Face and the original TensorFlow program."""
