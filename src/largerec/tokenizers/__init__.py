"""Item tokenizers: items to tokens and back."""

from largerec.tokenizers.atomic import AtomicTokenizer, as_ids

__all__ = ["AtomicTokenizer", "as_ids"]
