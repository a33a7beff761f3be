"""minialpaca: the Stanford Alpaca recipe, equation by equation, in pure PyTorch."""

__version__ = "0.1.0"
