"""Training in plain PyTorch: what a step declares, the data, the loop, the measurement and the saved states."""
