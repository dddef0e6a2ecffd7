"""What people run on their own texts and images: encode, search, rerank."""
