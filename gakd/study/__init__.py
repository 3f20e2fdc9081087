"""A controlled comparison of methods in a mini world: one teacher, one student, many runs, error bars."""
