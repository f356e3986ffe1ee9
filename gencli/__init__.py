"""gencli: text and pictures from checkpoints you own."""

__version__ = "0.1.0"
