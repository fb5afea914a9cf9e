"""Transpector looks inside transformer language models: see every head, ablate, freeze and patch any activation."""

__version__ = "0.1.0"
