"""A server of embeddings and scores over HTTP: waiting requests share the batches of one model."""
