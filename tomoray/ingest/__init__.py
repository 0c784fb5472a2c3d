"""Sources to archive: what is there, what is read, what is written, once."""
