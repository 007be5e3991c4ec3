"""What leaves the laboratory: packages, and pages that predict in a browser."""
