"""Workers: supervise generations, follow the chain, settle. Any of them may die at any moment."""
