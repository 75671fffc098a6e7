"""THE place for templates, tokenizing, end-of-turn tokens, truncation, the token contract. It knows no data."""

from alignkit.chat.format import ChatFormat
from alignkit.chat.length import OverLong, fit_length
from alignkit.chat.tokens import extend_embeddings

__all__ = ["ChatFormat", "OverLong", "extend_embeddings", "fit_length"]
