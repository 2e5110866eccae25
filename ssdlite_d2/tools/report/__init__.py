"""A report on trained models, or a comparison of them, as one HTML file."""
