"""What to do about a broken budget: cheaper widths, or pruning to the budget."""
