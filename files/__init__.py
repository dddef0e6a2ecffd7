"""Files of every room: written whole, named safely, and told apart by their content."""
