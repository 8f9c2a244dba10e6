"""Search engines over the items of a store: FAISS indexes and the folders that hold them."""
