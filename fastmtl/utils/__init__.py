"""Small things that know nothing of multi-task training: names, files, words, optional packages."""
