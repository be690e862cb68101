"""Files for other tools and chips: every weight that is 0 stays 0, and a round trip proves it."""
