"""Commands that check the figures this project states; each prints one JSON line."""
