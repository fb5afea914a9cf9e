"""Components: views, numpy in and Panel out."""
