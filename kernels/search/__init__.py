"""The k rows most alike to each query, by dot product: blocked products, of which only the best are kept."""
