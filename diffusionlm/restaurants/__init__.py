"""The bundled corpus of restaurant descriptions, its grammar and the quickstart."""
