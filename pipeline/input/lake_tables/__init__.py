"""Lake tables as input: recognised where plain files are named, and read by their own plan."""
