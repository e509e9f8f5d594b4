"""Text: tag schemes, CoNLL files, vocabularies, word vectors, and the batch that taggers read."""
