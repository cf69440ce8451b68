"""What is in a file, to look around in: one message in, one answer out, whatever the size of the file."""
