"""The whole way from labelled images to a detector that is compared with a plain classifier, and a report."""
