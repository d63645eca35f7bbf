"""The rest of the world's files: Hugging Face's and the original TensorFlow program's, both ways."""
