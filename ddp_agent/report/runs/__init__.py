"""Reading of run folders, in whatever state they were left."""
