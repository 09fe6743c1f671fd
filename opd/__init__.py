"""On-policy self-distillation: a language model teaches itself on its own answers."""

__version__ = "0.1.0"
