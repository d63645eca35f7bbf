"""Fine-tuning of a pretrained encoder: classification, regression, tagging, question answering."""
