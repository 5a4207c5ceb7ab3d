"""Results drawn: one HTML file that holds everything it shows."""
