"""Worker processes that prepare media and encode blocks of items."""
