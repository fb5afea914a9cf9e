"""The graph tab: the model's own diagram, drawn, kept up to date, and patched by drawing lines."""
