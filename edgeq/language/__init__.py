"""Language models that decode: from a Hugging Face folder to an artefact with a key-value cache, and its figures."""
