"""One page a file, plus the shell around them and the store they share."""
