"""What a reader sees of the store: tables and pictures, each made again from trials alone."""
