"""The model in the box: a small Llama-architecture model and its tokenizer, in plain Hugging Face files."""

from pathlib import Path

PATH = Path(__file__).parent
