"""Hard negatives: retrieval, judging, selection (UniME-V2) and clusters (SaHa)."""
