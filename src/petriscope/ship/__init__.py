"""What leaves the laboratory or serves it: packages, pages that predict in a browser, and the HTTP server."""
