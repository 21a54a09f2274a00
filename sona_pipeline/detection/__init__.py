"""The detector and what it says of images."""
