"""The web demo: requests of the page and their equivalents without gradio, and the page itself."""
