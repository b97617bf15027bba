"""The compressed cache that lives inside a Hugging Face decoder."""
