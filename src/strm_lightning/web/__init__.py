"""The web page of `strm demo`."""
