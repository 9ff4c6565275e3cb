"""Item tokenizers: items to tokens and back."""

from largerec.tokenizers.atomic import AtomicTokenizer

__all__ = ["AtomicTokenizer"]
