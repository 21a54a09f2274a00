"""One outlier of every labelled image."""
