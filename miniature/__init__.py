"""The miniature world: drawn images, their texts, and the small models that learn from them without a GPU."""
