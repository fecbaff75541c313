"""Models copied through their answers, what that costs, and how an owner proves it."""
