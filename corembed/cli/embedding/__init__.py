"""`corembed embed`: records from files, vectors to files, with memory of one window of texts."""
