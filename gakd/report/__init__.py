"""`gakd report`: run folders as one HTML page."""
