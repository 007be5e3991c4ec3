"""The HTTP server: models behind `POST /predict`, and a page for people."""
