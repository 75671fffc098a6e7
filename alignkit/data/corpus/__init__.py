"""Corpus-scale steps on datatrove (extra `data`): clean, deduplicate, decontaminate, split."""
