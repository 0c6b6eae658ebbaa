"""Plans for budgets of memory, quality and speed."""
