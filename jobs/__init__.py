"""Long runs: work in shards that can be killed and resumed, and the embedding and reranking done that way."""
