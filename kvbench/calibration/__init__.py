"""Second moments of keys, values and queries, collected once per model and text."""
