"""Media made on demand from small descriptions: a drawing rendered, a name spoken."""
