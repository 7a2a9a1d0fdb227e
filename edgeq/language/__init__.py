"""Language models that decode: from a Hugging Face folder to an artefact that keeps its cache, and what it is judged by."""
