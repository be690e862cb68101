"""What several tests share: networks, methods, loops, and programs run in other processes."""
