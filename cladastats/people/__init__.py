"""What words cost a model and its readers: meters, corpora of reading, models of them."""
