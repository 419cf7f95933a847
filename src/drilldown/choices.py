"""The words that some parameters take. A module of its own, so that the command line knows them without PyTorch."""

DATASETS = ("auto", "mnist", "digits")
DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("auto", "numba", "torch")
DEFAULT_MODEL = "mnist-cnn"  # the registered model that a command takes unless it is told another
