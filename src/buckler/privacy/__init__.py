"""What a model reveals about the rows that it learnt from."""
