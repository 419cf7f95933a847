"""Inference: image files are brought into MNIST's format, and a model predicts their digits."""
