"""Folders of Hugging Face's: what lies in them, and their tokenizers. Nothing here fetches anything."""
