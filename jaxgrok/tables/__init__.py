"""Tables of results: rows for CSV files, and the same to read."""
