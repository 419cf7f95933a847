"""The page to draw on, and the server that reads what is drawn."""
