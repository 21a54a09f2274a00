"""What each training method adds to the cross-entropy, a file each."""
